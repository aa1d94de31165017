package guanaco

// #include <stdlib.h>
// #include <guanaco/c.h>
import "C"

import (
	"context"
	"runtime"
	"sync"
	"unsafe"
)

// Stream turns bytes of tokens into text that can be shown at once.
type Stream struct{ p *C.guanaco_stream }

func NewStream(options Options) (*Stream, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	defer b.close()
	s := &Stream{}
	var e C.guanaco_error
	if _, err := check(C.guanaco_stream_new(b.p, &s.p, &e), &e); err != nil {
		return nil, err
	}
	runtime.SetFinalizer(s, (*Stream).Close)
	return s, nil
}
func (s *Stream) Close() {
	C.guanaco_stream_free(s.p)
	s.p = nil
}

// Push gives the text that these bytes release; end: a stop text was found.
func (s *Stream) Push(data []byte) (text string, end bool, err error) {
	var p *C.char
	var n C.size_t
	var e C.guanaco_error
	var from *C.char
	if len(data) > 0 {
		from = (*C.char)(unsafe.Pointer(&data[0]))
	}
	end, err = check(C.guanaco_stream_push(s.p, from, C.size_t(len(data)), &p, &n, &e), &e)
	text = goText(p, n)
	runtime.KeepAlive(s)
	return text, end, err
}
func (s *Stream) Finish() (string, error) {
	var p *C.char
	var n C.size_t
	var e C.guanaco_error
	_, err := check(C.guanaco_stream_finish(s.p, &p, &n, &e), &e)
	text := goText(p, n)
	runtime.KeepAlive(s)
	return text, err
}

// Stop is the index of the stop text that was found, or -1.
func (s *Stream) Stop() int { defer runtime.KeepAlive(s); return int(C.guanaco_stream_stop(s.p)) }

// Sampler is the choices of one sequence.
type Sampler struct{ p *C.guanaco_sampler }

func NewSampler(options Options) (*Sampler, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	defer b.close()
	s := &Sampler{}
	var e C.guanaco_error
	_, err = check(C.guanaco_sampler_new(b.p, &s.p, &e), &e)
	return s.own(err)
}
func (s *Sampler) own(err error) (*Sampler, error) {
	if err != nil {
		return nil, err
	}
	runtime.SetFinalizer(s, (*Sampler).Close)
	return s, nil
}
func (s *Sampler) Close() {
	C.guanaco_sampler_free(s.p)
	s.p = nil
}

// Copy branches: both draw the same from here.
func (s *Sampler) Copy() (*Sampler, error) {
	other := &Sampler{}
	var e C.guanaco_error
	_, err := check(C.guanaco_sampler_copy(s.p, &other.p, &e), &e)
	runtime.KeepAlive(s)
	return other.own(err)
}
func (s *Sampler) Sample(logits []float32) (int32, error) {
	var p *C.float
	if len(logits) > 0 {
		p = (*C.float)(unsafe.Pointer(&logits[0]))
	}
	var token C.int32_t
	var e C.guanaco_error
	_, err := check(C.guanaco_sampler_sample(s.p, p, C.size_t(len(logits)), &token, &e), &e)
	runtime.KeepAlive(s)
	return int32(token), err
}

// Accept counts tokens that were not chosen here as seen.
func (s *Sampler) Accept(tokens []int32) error {
	var e C.guanaco_error
	p, n := idPointer(tokens)
	_, err := check(C.guanaco_sampler_accept(s.p, p, n, &e), &e)
	runtime.KeepAlive(s)
	return err
}

// Session is the tokens so far and their cache.
type Session struct{ p *C.guanaco_session }

// NewSession reserves room for Options.Context tokens.
func (m *Model) NewSession(options Options) (*Session, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	defer b.close()
	s := &Session{}
	var e C.guanaco_error
	_, err = check(C.guanaco_session_new(m.p, b.p, &s.p, &e), &e)
	runtime.KeepAlive(m)
	if err != nil {
		return nil, err
	}
	runtime.SetFinalizer(s, (*Session).Close)
	return s, nil
}
func (s *Session) Close() {
	C.guanaco_session_free(s.p)
	s.p = nil
}

// Feed appends tokens; Options.Progress may give up.
func (s *Session) Feed(tokens []int32, options Options) error {
	b, err := options.bag()
	if err != nil {
		return err
	}
	defer b.close()
	var e C.guanaco_error
	p, n := idPointer(tokens)
	status := C.guanaco_session_feed(s.p, p, n, b.p, &e)
	runtime.KeepAlive(s)
	b.done()
	_, err = check(status, &e)
	return err
}

// Part is what FeedMany feeds to one session.
type Part struct {
	Session *Session
	Tokens  []int32
}

// FeedMany reads the weights once for many sessions of one model.
func FeedMany(parts []Part, options Options) error {
	b, err := options.bag()
	if err != nil || len(parts) == 0 {
		return err
	}
	defer b.close()
	// What C reads through pointers must not lie in Go's memory: copies.
	count := len(parts)
	sessions := (*[1 << 20]*C.guanaco_session)(C.calloc(C.size_t(count), C.size_t(unsafe.Sizeof(uintptr(0)))))
	tokens := (*[1 << 20]*C.int32_t)(C.calloc(C.size_t(count), C.size_t(unsafe.Sizeof(uintptr(0)))))
	counts := make([]C.size_t, count)
	for i, part := range parts {
		sessions[i], counts[i] = part.Session.p, C.size_t(len(part.Tokens))
		if len(part.Tokens) > 0 {
			tokens[i] = (*C.int32_t)(C.calloc(counts[i], 4))
			copy(unsafe.Slice((*int32)(unsafe.Pointer(tokens[i])), len(part.Tokens)), part.Tokens)
		}
	}
	var e C.guanaco_error
	status := C.guanaco_session_feed_many(&sessions[0], &tokens[0], &counts[0], C.size_t(count), b.p, &e)
	for i := range parts {
		C.free(unsafe.Pointer(tokens[i]))
	}
	C.free(unsafe.Pointer(tokens))
	C.free(unsafe.Pointer(sessions))
	runtime.KeepAlive(parts)
	b.done()
	_, err = check(status, &e)
	return err
}

// Score feeds, and gives the log-probability of each token.
func (s *Session) Score(tokens []int32, options Options) ([]float32, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	defer b.close()
	scores := make([]float32, len(tokens)+1)
	var e C.guanaco_error
	p, n := idPointer(tokens)
	status := C.guanaco_session_score(s.p, p, n, (*C.float)(unsafe.Pointer(&scores[0])), b.p, &e)
	runtime.KeepAlive(s)
	b.done()
	_, err = check(status, &e)
	return scores[:len(tokens)], err
}

// Logits is a copy of the scores of the next token; empty if there are none.
func (s *Session) Logits() []float32 {
	var n C.size_t
	p := C.guanaco_session_logits(s.p, &n)
	logits := append([]float32(nil), unsafe.Slice((*float32)(unsafe.Pointer(p)), int(n))...)
	runtime.KeepAlive(s)
	return logits
}

// Tokens is a copy of all that the cache holds.
func (s *Session) Tokens() []int32 {
	var n C.size_t
	p := C.guanaco_session_tokens(s.p, &n)
	tokens := append([]int32(nil), unsafe.Slice((*int32)(unsafe.Pointer(p)), int(n))...)
	runtime.KeepAlive(s)
	return tokens
}
func (s *Session) Position() int {
	defer runtime.KeepAlive(s)
	return int(C.guanaco_session_position(s.p))
}
func (s *Session) Context() int {
	defer runtime.KeepAlive(s)
	return int(C.guanaco_session_context(s.p))
}
func (s *Session) Rewind(position int) error {
	var e C.guanaco_error
	_, err := check(C.guanaco_session_rewind(s.p, C.int64_t(position), &e), &e)
	runtime.KeepAlive(s)
	return err
}

// Reuse says how many tokens of a prompt are here already; the others are forgotten.
func (s *Session) Reuse(prompt []int32) (int, error) {
	var known C.size_t
	var e C.guanaco_error
	p, n := idPointer(prompt)
	_, err := check(C.guanaco_session_reuse(s.p, p, n, &known, &e), &e)
	runtime.KeepAlive(s)
	return int(known), err
}

// Generate starts a reply to a prompt; sampler nil: by the options.
func (s *Session) Generate(prompt string, sampler *Sampler, options Options) (*Generation, error) {
	text, length := textPointer(prompt)
	defer runtime.KeepAlive(prompt)
	return s.generate(sampler, options, func(c *C.guanaco_sampler, b *bag, out **C.guanaco_generation, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_generate(s.p, c, text, length, b.p, out, e)
	})
}

// GenerateTokens is Generate for a prompt of tokens.
func (s *Session) GenerateTokens(prompt []int32, sampler *Sampler, options Options) (*Generation, error) {
	p, n := idPointer(prompt)
	return s.generate(sampler, options, func(c *C.guanaco_sampler, b *bag, out **C.guanaco_generation, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_generate_tokens(s.p, c, p, n, b.p, out, e)
	})
}
func (s *Session) generate(sampler *Sampler, options Options,
	start func(*C.guanaco_sampler, *bag, **C.guanaco_generation, *C.guanaco_error) C.guanaco_status) (*Generation, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	var c *C.guanaco_sampler
	if sampler != nil {
		if c = sampler.p; c == nil { // NULL would mean the options' own
			b.close()
			return nil, &Error{ErrInvalidArgument, "sampler: is closed"}
		}
	}
	var out *C.guanaco_generation
	var e C.guanaco_error
	_, err = check(start(c, b, &out, &e), &e)
	runtime.KeepAlive(s)
	runtime.KeepAlive(sampler)
	if err != nil {
		b.close()
		return nil, err
	}
	g := &Generation{handle: &handle{p: out}, bag: b, session: s}
	runtime.SetFinalizer(g, (*Generation).Close)
	return g, nil
}

// handle is what a reply's watcher knows: not the Generation, which may be forgotten while a context lives on.
type handle struct {
	mutex   sync.Mutex
	p       *C.guanaco_generation // nil once closed
	calls   sync.WaitGroup        // those in C, for which Close waits
	context <-chan struct{}       // of the Next that is in C
}

// enter keeps the reply from being freed until calls.Done, if it is not closed.
func (h *handle) enter(context <-chan struct{}) *C.guanaco_generation {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.p != nil {
		h.calls.Add(1)
		h.context = context
	}
	return h.p
}

// watch cancels the Next that waits with this context.
func (h *handle) watch(context, over <-chan struct{}) {
	select {
	case <-context:
		h.mutex.Lock()
		defer h.mutex.Unlock()
		if h.context == context {
			C.guanaco_generation_cancel(h.p)
		}
	case <-over:
	}
}

// Generation is a reply.
type Generation struct {
	*handle
	bag     *bag // whose callback the prompt still needs
	session *Session
	watched <-chan struct{} // the context that a goroutine watches, until over
	over    chan struct{}
	text    string
	token   int32
	logprob float32
	err     error
}

// Close cancels the reply, waits for a Next elsewhere to come back, and the session is free again.
func (g *Generation) Close() {
	g.mutex.Lock()
	p := g.p
	g.p = nil
	C.guanaco_generation_cancel(p)
	g.mutex.Unlock()
	if p == nil {
		return
	}
	g.calls.Wait()
	g.follow(nil)
	C.guanaco_generation_free(p)
	g.bag.close()
}

// follow has one goroutine watch a context, over all Next that have the same: one each would cost more than a token.
func (g *Generation) follow(context <-chan struct{}) {
	if context == g.watched {
		return
	}
	if g.over != nil {
		close(g.over)
		g.over = nil
	}
	if g.watched = context; context != nil {
		g.over = make(chan struct{})
		go g.watch(context, g.over)
	}
}

// Next computes the next token; false at the end, of which Err tells more. ctx cancels it, in the middle of a long
// prompt too; one that ends between calls is noticed by the next call with it.
func (g *Generation) Next(ctx context.Context) bool {
	done := ctx.Done()
	p := g.enter(done)
	if p == nil {
		g.text, g.token, g.logprob = "", 0, 0
		if g.err = ctx.Err(); g.err == nil {
			g.err = &Error{ErrInvalidArgument, "generation: is closed"}
		}
		return false
	}
	defer g.leave()
	g.follow(done)
	if ctx.Err() != nil { // after enter: from there on the watcher sees it
		C.guanaco_generation_cancel(p)
	}
	var text *C.char
	var length C.size_t
	var token C.int32_t
	var logprob C.float
	var e C.guanaco_error
	status := C.guanaco_generation_next(p, &text, &length, &token, &logprob, &e)
	g.text, g.token, g.logprob = goText(text, length), int32(token), float32(logprob)
	end, err := check(status, &e)
	if err == context.Canceled && ctx.Err() != nil {
		err = ctx.Err() // DeadlineExceeded, maybe
	}
	g.err = err
	if end || err != nil {
		g.follow(nil)
	}
	runtime.KeepAlive(g)
	g.bag.done()
	return !end && err == nil
}
func (h *handle) leave() {
	h.mutex.Lock()
	h.context = nil
	h.mutex.Unlock()
	h.calls.Done()
}
func (g *Generation) Text() string     { return g.text }
func (g *Generation) Token() int32     { return g.token }
func (g *Generation) Logprob() float32 { return g.logprob }

// Err is why Next gave false: nil at the end, the context's own, context.Canceled, or a failure.
func (g *Generation) Err() error { return g.err }

// All is a channel of the texts; Err tells more once it is closed. Drain it, or cancel ctx, then Close.
func (g *Generation) All(ctx context.Context) <-chan string {
	texts := make(chan string)
	go func() {
		defer close(texts)
		for g.Next(ctx) {
			select {
			case texts <- g.Text():
			case <-ctx.Done():
			}
		}
	}()
	return texts
}

// Cancel ends the reply, from any goroutine.
func (g *Generation) Cancel() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	C.guanaco_generation_cancel(g.p)
}
func (g *Generation) Finish() Finish {
	defer runtime.KeepAlive(g)
	return Finish(C.guanaco_generation_finish(g.p))
}
func (g *Generation) Tokens() int {
	defer runtime.KeepAlive(g)
	return int(C.guanaco_generation_tokens(g.p))
}

// Step computes one token of many replies of one model in one pass; the Next of each hands it out.
func Step(replies ...*Generation) error {
	if len(replies) == 0 {
		return nil
	}
	pointers := make([]*C.guanaco_generation, len(replies))
	for i, reply := range replies {
		if pointers[i] = reply.enter(nil); pointers[i] != nil { // C refuses one that is closed
			defer reply.calls.Done()
		}
	}
	var e C.guanaco_error
	_, err := check(C.guanaco_generation_step(&pointers[0], C.size_t(len(pointers)), &e), &e)
	runtime.KeepAlive(replies)
	return err
}
