// Package guanaco is libguanaco for Go, over its C ABI. Copy guanaco.go, session.go and callbacks.go into a folder of
// your module.
//
//	model, err := guanaco.Load("guanaco-13B-GPTQ", guanaco.Options{})
//	session, err := model.NewSession(guanaco.Options{Context: 2048})
//	reply, err := session.Generate("Once upon a time", nil, guanaco.Options{Seed: 7})
//	for reply.Next(ctx) {
//		fmt.Print(reply.Text())
//	}
//	err = reply.Err()
//
// A Model and a Tokenizer may be used by many goroutines at once, everything else by one at a time; Cancel by any.
// Objects keep what they use alive and may be closed in any order; a finalizer closes what was forgotten. While a
// Generation is open, nothing but it may change its Session. A closed object gives an error of ErrInvalidArgument;
// methods without errors give -1 (Position, Context, BOS, EOS, Stop), else 0 or nothing.
// Callbacks must not compute with a model, nor wait for a goroutine that does with theirs.
package guanaco

// #cgo pkg-config: guanaco-c
// #include <stdlib.h>
// #include <guanaco/c.h>
// extern int32_t goProgress(uint64_t done, uint64_t total, uintptr_t handle);
// extern void goLog(int32_t severity, char* line, size_t length, uintptr_t handle);
// // A handle is a small number, which Go must never see as a pointer.
// static int32_t progress(uint64_t done, uint64_t total, void* handle) {
//   return goProgress(done, total, (uintptr_t)handle);
// }
// static void line(int32_t severity, const char* text, size_t length, void* handle) {
//   goLog(severity, (char*)text, length, (uintptr_t)handle);
// }
// static guanaco_status on_progress(guanaco_options* options, uintptr_t handle, guanaco_error* error) {
//   return guanaco_options_on_progress(options, progress, (void*)handle, error);
// }
// static guanaco_status on_log(guanaco_options* options, uintptr_t handle, guanaco_error* error) {
//   return guanaco_options_on_log(options, line, (void*)handle, error);
// }
import "C"

import (
	"context"
	"fmt"
	"runtime"
	"runtime/cgo"
	"strings"
	"unsafe"
)

// Status says why a call failed; it is an error that errors.Is finds in an *Error.
type Status int32

const (
	ErrInvalidArgument Status = C.GUANACO_INVALID_ARGUMENT
	ErrNotFound        Status = C.GUANACO_NOT_FOUND
	ErrMalformed       Status = C.GUANACO_MALFORMED
	ErrUnsupported     Status = C.GUANACO_UNSUPPORTED
	ErrOutOfMemory     Status = C.GUANACO_OUT_OF_MEMORY
	ErrContextFull     Status = C.GUANACO_CONTEXT_FULL
	ErrDevice          Status = C.GUANACO_DEVICE
	ErrInternal        Status = C.GUANACO_INTERNAL
)

func (s Status) Error() string { return C.GoString(C.guanaco_status_name(C.guanaco_status(s))) }

// Error is a failure: one line that names the culprit. Work that was cancelled is context.Canceled instead.
type Error struct {
	Status  Status
	Message string
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Status }

func init() {
	if abi := C.guanaco_abi(); abi != C.GUANACO_ABI {
		panic(fmt.Sprintf("guanaco.go is for ABI %d, the library has %d", int(C.GUANACO_ABI), int(abi)))
	}
}

// check makes an error of a status. end: GUANACO_END is no error, and is told.
func check(status C.guanaco_status, e *C.guanaco_error) (end bool, err error) {
	switch {
	case status == C.GUANACO_CANCELLED:
		return false, context.Canceled
	case status < 0:
		message := C.GoString(&e.message[0])
		if object := strings.TrimSuffix(message, "is NULL"); object != message { // which nothing is here but what was closed
			message = object + "is closed"
		}
		return false, &Error{Status(status), message}
	}
	return status == C.GUANACO_END, nil
}

// Version is that of the library.
func Version() string { return C.GoString(C.guanaco_version()) }

func textPointer(s string) (*C.char, C.size_t) {
	if len(s) == 0 {
		return nil, 0
	}
	return *(**C.char)(unsafe.Pointer(&s)), C.size_t(len(s)) // a string begins with its pointer
}
func idPointer(tokens []int32) (*C.int32_t, C.size_t) {
	if len(tokens) == 0 {
		return nil, 0
	}
	return (*C.int32_t)(unsafe.Pointer(&tokens[0])), C.size_t(len(tokens))
}
func goText(text *C.char, length C.size_t) string { return C.GoStringN(text, C.int(length)) }

// list collects texts until the end.
func list(get func(index C.size_t, text **C.char, length *C.size_t, e *C.guanaco_error) C.guanaco_status) ([]string, error) {
	var found []string
	for {
		var text *C.char
		var length C.size_t
		var e C.guanaco_error
		end, err := check(get(C.size_t(len(found)), &text, &length, &e), &e)
		if end || err != nil {
			return found, err
		}
		found = append(found, goText(text, length))
	}
}

// Numbers of devices, zero points, severities, roles and model facts are those of c.h.
const (
	DeviceAutomatic = C.GUANACO_DEVICE_AUTOMATIC
	DeviceCPU       = C.GUANACO_DEVICE_CPU
	DeviceCUDA      = C.GUANACO_DEVICE_CUDA

	ZeroPointsV1 = C.GUANACO_ZERO_POINTS_V1
	ZeroPointsV2 = C.GUANACO_ZERO_POINTS_V2

	SeverityDebug   = C.GUANACO_SEVERITY_DEBUG
	SeverityInfo    = C.GUANACO_SEVERITY_INFO
	SeverityWarning = C.GUANACO_SEVERITY_WARNING

	System    = C.GUANACO_ROLE_SYSTEM
	User      = C.GUANACO_ROLE_USER
	Assistant = C.GUANACO_ROLE_ASSISTANT

	InfoLayers          = C.GUANACO_INFO_LAYERS
	InfoHeads           = C.GUANACO_INFO_HEADS
	InfoKVHeads         = C.GUANACO_INFO_KV_HEADS
	InfoHeadDim         = C.GUANACO_INFO_HEAD_DIM
	InfoHidden          = C.GUANACO_INFO_HIDDEN
	InfoFFN             = C.GUANACO_INFO_FFN
	InfoVocab           = C.GUANACO_INFO_VOCAB
	InfoContext         = C.GUANACO_INFO_CONTEXT
	InfoBits            = C.GUANACO_INFO_BITS
	InfoGroupSize       = C.GUANACO_INFO_GROUP_SIZE
	InfoActOrder        = C.GUANACO_INFO_ACT_ORDER
	InfoParameters      = C.GUANACO_INFO_PARAMETERS
	InfoFileBytes       = C.GUANACO_INFO_FILE_BYTES
	InfoWeightBytes     = C.GUANACO_INFO_WEIGHT_BYTES
	InfoBytesPerToken   = C.GUANACO_INFO_BYTES_PER_TOKEN
	InfoKVBytesPerToken = C.GUANACO_INFO_KV_BYTES_PER_TOKEN
	InfoThreads         = C.GUANACO_INFO_THREADS
	InfoHasTokenizer    = C.GUANACO_INFO_HAS_TOKENIZER

	TextDevice   = C.GUANACO_TEXT_DEVICE
	TextFormat   = C.GUANACO_TEXT_FORMAT
	TextDecision = C.GUANACO_TEXT_DECISION
	TextWarning  = C.GUANACO_TEXT_WARNING
	TextIgnored  = C.GUANACO_TEXT_IGNORED
)

// Finish says why a reply ended.
type Finish int32

const (
	NotFinished Finish = C.GUANACO_FINISH_NONE
	EndOfText   Finish = C.GUANACO_FINISH_END_OF_TEXT
	StopText    Finish = C.GUANACO_FINISH_STOP_TEXT
	MaxTokens   Finish = C.GUANACO_FINISH_MAX_TOKENS
	ContextFull Finish = C.GUANACO_FINISH_CONTEXT_FULL
	Cancelled   Finish = C.GUANACO_FINISH_CANCELLED
)

// Options are settings; nil pointers and zeros mean the library's defaults, which c.h names.
type Options struct {
	Device, CUDADevice, Threads, Rows, ZeroPoints int
	Context                                       int
	Seed                                          uint64
	Temperature, TopP, RepetitionPenalty          *float64 // Float(0) is a value
	MinP, FrequencyPenalty, PresencePenalty       float64
	TopK, PenaltyWindow, MaxTokens                int
	KeepLeadingSpace, GoOnAtEndOfText             bool // of a generation
	DropLeadingSpace, KeepBeforeStop              bool // of a stream; the latter of a generation, too
	Stops                                         []string
	// Progress gets what is done and all; false gives up. It and Log run inside the call, on its goroutine.
	Progress func(done, total uint64) bool
	Log      func(severity int, line string)
}

// Float is for Options.
func Float(value float64) *float64 { return &value }

// bag is the library's form of Options. close it.
type bag struct {
	p      *C.guanaco_options
	handle cgo.Handle
	calls  *callbacks
}

func (o Options) bag() (*bag, error) {
	b := &bag{p: C.guanaco_options_new()}
	if b.p == nil {
		return nil, &Error{ErrOutOfMemory, "options"}
	}
	var e C.guanaco_error
	var failed error
	keep := func(status C.guanaco_status) {
		if _, err := check(status, &e); err != nil && failed == nil {
			failed = err
		}
	}
	integer := func(option C.guanaco_option, value int64, given bool) {
		if given {
			keep(C.guanaco_options_set_int(b.p, option, C.int64_t(value), &e))
		}
	}
	for _, set := range []struct {
		option C.guanaco_option
		value  int
	}{
		{C.GUANACO_OPTION_DEVICE, o.Device},
		{C.GUANACO_OPTION_CUDA_DEVICE, o.CUDADevice},
		{C.GUANACO_OPTION_THREADS, o.Threads},
		{C.GUANACO_OPTION_ROWS, o.Rows},
		{C.GUANACO_OPTION_ZERO_POINTS, o.ZeroPoints},
		{C.GUANACO_OPTION_CONTEXT, o.Context},
		{C.GUANACO_OPTION_TOP_K, o.TopK},
		{C.GUANACO_OPTION_PENALTY_WINDOW, o.PenaltyWindow},
		{C.GUANACO_OPTION_MAX_TOKENS, o.MaxTokens},
	} {
		integer(set.option, int64(set.value), set.value != 0)
	}
	integer(C.GUANACO_OPTION_SEED, int64(o.Seed), o.Seed != 0)
	integer(C.GUANACO_OPTION_DROP_LEADING_SPACE, 0, o.KeepLeadingSpace)
	integer(C.GUANACO_OPTION_DROP_LEADING_SPACE, 1, o.DropLeadingSpace)
	integer(C.GUANACO_OPTION_STOP_AT_END_OF_TEXT, 0, o.GoOnAtEndOfText)
	integer(C.GUANACO_OPTION_TRIM_BEFORE_STOP, 0, o.KeepBeforeStop)
	float := func(option C.guanaco_option, value float64) {
		keep(C.guanaco_options_set_float(b.p, option, C.double(value), &e))
	}
	for option, value := range map[C.guanaco_option]*float64{
		C.GUANACO_OPTION_TEMPERATURE:        o.Temperature,
		C.GUANACO_OPTION_TOP_P:              o.TopP,
		C.GUANACO_OPTION_REPETITION_PENALTY: o.RepetitionPenalty,
	} {
		if value != nil {
			float(option, *value)
		}
	}
	float(C.GUANACO_OPTION_MIN_P, o.MinP)
	float(C.GUANACO_OPTION_FREQUENCY_PENALTY, o.FrequencyPenalty)
	float(C.GUANACO_OPTION_PRESENCE_PENALTY, o.PresencePenalty)
	for _, stop := range o.Stops {
		text, length := textPointer(stop)
		keep(C.guanaco_options_add_stop(b.p, text, length, &e))
	}
	if o.Progress != nil || o.Log != nil {
		b.calls = &callbacks{progress: o.Progress, log: o.Log}
		b.handle = cgo.NewHandle(b.calls)
		keep(C.on_progress(b.p, C.uintptr_t(b.handle), &e)) // a panic of Log, too, ends the call there
		if o.Log != nil {
			keep(C.on_log(b.p, C.uintptr_t(b.handle), &e))
		}
	}
	if failed != nil {
		b.close()
		return nil, failed
	}
	return b, nil
}
func (b *bag) close() {
	C.guanaco_options_free(b.p)
	b.p = nil
	if b.handle != 0 {
		b.handle.Delete()
		b.handle = 0
	}
}

// done is called after the library may have run callbacks: what one panicked with goes on from here.
func (b *bag) done() {
	if b.calls != nil && b.calls.panicked != nil {
		panicked := b.calls.panicked
		b.calls.panicked = nil
		panic(panicked)
	}
}

// Model is the weights of a checkpoint.
type Model struct{ p *C.guanaco_model }

// Load reads a folder; of the options those of loading count.
func Load(path string, options Options) (*Model, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	defer b.close()
	m := &Model{}
	runtime.SetFinalizer(m, (*Model).Close) // now, for Log may panic although there is an object
	var e C.guanaco_error
	text, length := textPointer(path)
	status := C.guanaco_model_load(text, length, b.p, &m.p, &e)
	runtime.KeepAlive(path)
	b.done()
	if _, err := check(status, &e); err != nil {
		return nil, err
	}
	return m, nil
}

// Close gives up the handle; sessions keep the weights.
func (m *Model) Close() {
	C.guanaco_model_free(m.p)
	m.p = nil
}
func (m *Model) Info(number int) (int64, error) {
	var value C.int64_t
	var e C.guanaco_error
	_, err := check(C.guanaco_model_info(m.p, C.int32_t(number), &value, &e), &e)
	runtime.KeepAlive(m)
	return int64(value), err
}

// Texts gives all of one kind, such as TextWarning.
func (m *Model) Texts(kind int) ([]string, error) {
	defer runtime.KeepAlive(m)
	return list(func(i C.size_t, text **C.char, length *C.size_t, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_model_text(m.p, C.int32_t(kind), i, text, length, e)
	})
}
func (m *Model) Tokenizer() (*Tokenizer, error) {
	t := &Tokenizer{}
	var e C.guanaco_error
	_, err := check(C.guanaco_model_tokenizer(m.p, &t.p, &e), &e)
	runtime.KeepAlive(m)
	return t.own(err)
}

// Inspection is what a folder holds, from the headers of its files alone.
type Inspection struct{ p *C.guanaco_inspection }

func Inspect(path string, options Options) (*Inspection, error) {
	b, err := options.bag()
	if err != nil {
		return nil, err
	}
	defer b.close()
	i := &Inspection{}
	runtime.SetFinalizer(i, (*Inspection).Close) // now, for Log may panic although there is an object
	var e C.guanaco_error
	text, length := textPointer(path)
	status := C.guanaco_inspect(text, length, b.p, &i.p, &e)
	runtime.KeepAlive(path)
	b.done()
	if _, err := check(status, &e); err != nil {
		return nil, err
	}
	return i, nil
}
func (i *Inspection) Close() {
	C.guanaco_inspection_free(i.p)
	i.p = nil
}
func (i *Inspection) Info(number int) (int64, error) {
	var value C.int64_t
	var e C.guanaco_error
	_, err := check(C.guanaco_inspection_info(i.p, C.int32_t(number), &value, &e), &e)
	runtime.KeepAlive(i)
	return int64(value), err
}
func (i *Inspection) Texts(kind int) ([]string, error) {
	defer runtime.KeepAlive(i)
	return list(func(n C.size_t, text **C.char, length *C.size_t, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_inspection_text(i.p, C.int32_t(kind), n, text, length, e)
	})
}

// Memory is the bytes that a model and one session will take.
type Memory struct{ Weights, Scratch, Session, Loading, Host, Device uint64 }

func Estimate(path string, options Options) (Memory, error) {
	b, err := options.bag()
	if err != nil {
		return Memory{}, err
	}
	defer b.close()
	var v [C.GUANACO_MEMORY_DEVICE + 1]C.uint64_t
	var e C.guanaco_error
	text, length := textPointer(path)
	_, err = check(C.guanaco_estimate(text, length, b.p, &v[0], C.size_t(len(v)), &e), &e)
	runtime.KeepAlive(path)
	b.done()
	return Memory{uint64(v[0]), uint64(v[1]), uint64(v[2]), uint64(v[3]), uint64(v[4]), uint64(v[5])}, err
}

type Tokenizer struct{ p *C.guanaco_tokenizer }

func LoadTokenizer(file string) (*Tokenizer, error) {
	t := &Tokenizer{}
	var e C.guanaco_error
	text, length := textPointer(file)
	_, err := check(C.guanaco_tokenizer_load(text, length, &t.p, &e), &e)
	runtime.KeepAlive(file)
	return t.own(err)
}
func (t *Tokenizer) own(err error) (*Tokenizer, error) {
	if err != nil {
		return nil, err
	}
	runtime.SetFinalizer(t, (*Tokenizer).Close)
	return t, nil
}
func (t *Tokenizer) Close() {
	C.guanaco_tokenizer_free(t.p)
	t.p = nil
}
func (t *Tokenizer) Size() int { defer runtime.KeepAlive(t); return int(C.guanaco_tokenizer_size(t.p)) }
func (t *Tokenizer) BOS() int32 {
	defer runtime.KeepAlive(t)
	return int32(C.guanaco_tokenizer_bos(t.p))
}
func (t *Tokenizer) EOS() int32 {
	defer runtime.KeepAlive(t)
	return int32(C.guanaco_tokenizer_eos(t.p))
}

// Encode is for the beginning of a sequence; begin puts bos in front.
func (t *Tokenizer) Encode(text string, begin bool) ([]int32, error) {
	first := C.int32_t(0)
	if begin {
		first = 1
	}
	p, n := textPointer(text)
	return t.encode(text, func(to *C.int32_t, room C.size_t, needed *C.size_t, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_tokenizer_encode(t.p, p, n, first, to, room, needed, e)
	})
}

// EncodeContinuation is for text that goes on where other text ended.
func (t *Tokenizer) EncodeContinuation(text string) ([]int32, error) {
	p, n := textPointer(text)
	return t.encode(text, func(to *C.int32_t, room C.size_t, needed *C.size_t, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_tokenizer_encode_continuation(t.p, p, n, to, room, needed, e)
	})
}
func (t *Tokenizer) encode(text string, f func(*C.int32_t, C.size_t, *C.size_t, *C.guanaco_error) C.guanaco_status) ([]int32, error) {
	tokens := make([]int32, len(text)+2) // enough for valid UTF-8; a bad byte becomes more than one token
	to, room := idPointer(tokens)
	var needed C.size_t
	var e C.guanaco_error
	status := f(to, room, &needed, &e)
	if status == C.GUANACO_BUFFER_TOO_SMALL {
		tokens = make([]int32, needed)
		to, room = idPointer(tokens)
		status = f(to, room, &needed, &e)
	}
	runtime.KeepAlive(text)
	runtime.KeepAlive(t)
	if _, err := check(status, &e); err != nil {
		return nil, err
	}
	return tokens[:needed], nil
}
func (t *Tokenizer) Decode(tokens []int32) (string, error) {
	var needed C.size_t
	var e C.guanaco_error
	p, n := idPointer(tokens)
	status := C.guanaco_tokenizer_decode(t.p, p, n, nil, 0, &needed, &e)
	text := make([]byte, needed+1)
	if status == C.GUANACO_BUFFER_TOO_SMALL {
		status = C.guanaco_tokenizer_decode(t.p, p, n, (*C.char)(unsafe.Pointer(&text[0])), needed, &needed, &e)
	}
	runtime.KeepAlive(t)
	_, err := check(status, &e)
	return string(text[:needed]), err
}

// Piece is the bytes of one token.
func (t *Tokenizer) Piece(token int32) ([]byte, error) {
	var p *C.char
	var n C.size_t
	var e C.guanaco_error
	_, err := check(C.guanaco_tokenizer_piece(t.p, C.int32_t(token), &p, &n, &e), &e)
	piece := C.GoBytes(unsafe.Pointer(p), C.int(n))
	runtime.KeepAlive(t)
	return piece, err
}

// Chat is a conversation and the shape in which it becomes a prompt.
type Chat struct{ p *C.guanaco_chat }

func ChatNames() []string {
	names, _ := list(func(i C.size_t, text **C.char, length *C.size_t, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_chat_name(i, text, length)
	})
	return names
}
func NewChat(name string) (*Chat, error) {
	c := &Chat{}
	var e C.guanaco_error
	text, length := textPointer(name)
	_, err := check(C.guanaco_chat_new(text, length, &c.p, &e), &e)
	runtime.KeepAlive(name)
	if err != nil {
		return nil, err
	}
	runtime.SetFinalizer(c, (*Chat).Close)
	return c, nil
}
func (c *Chat) Close() {
	C.guanaco_chat_free(c.p)
	c.p = nil
}
func (c *Chat) Add(role int, text string) error {
	var e C.guanaco_error
	p, n := textPointer(text)
	_, err := check(C.guanaco_chat_add(c.p, C.int32_t(role), p, n, &e), &e)
	runtime.KeepAlive(text)
	runtime.KeepAlive(c)
	return err
}
func (c *Chat) Clear() error {
	var e C.guanaco_error
	_, err := check(C.guanaco_chat_clear(c.p, &e), &e)
	runtime.KeepAlive(c)
	return err
}
func (c *Chat) Render() (string, error) {
	var text *C.char
	var length C.size_t
	var e C.guanaco_error
	_, err := check(C.guanaco_chat_render(c.p, &text, &length, &e), &e)
	prompt := goText(text, length)
	runtime.KeepAlive(c)
	return prompt, err
}
func (c *Chat) Stops() ([]string, error) {
	defer runtime.KeepAlive(c)
	return list(func(i C.size_t, text **C.char, length *C.size_t, e *C.guanaco_error) C.guanaco_status {
		return C.guanaco_chat_stop(c.p, i, text, length, e)
	})
}
