// A tour of the wrapper, and of what happens when something goes wrong. Every language has this program: all print the same.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"guanaco"
)

const prompt = "### Human: What are the benefits of regular exercise? ### Assistant:"

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(1)
	}
	return value
}
func done(err error) { must(0, err) }

// row is the values with spaces between them.
func row[T any](format string, values []T) string {
	var texts []string
	for _, value := range values {
		texts = append(texts, fmt.Sprintf(format, value))
	}
	return strings.Join(texts, " ")
}

// files shows what the headers of the files tell before anything is loaded.
func files(path string) {
	found := must(guanaco.Inspect(path, guanaco.Options{}))
	defer found.Close()
	fmt.Printf("inspect: %d layers, %s\n", must(found.Info(guanaco.InfoLayers)), must(found.Texts(guanaco.TextFormat))[0])
	need := must(guanaco.Estimate(path, guanaco.Options{Context: 64}))
	fmt.Printf("estimate: %d bytes of weights, %d of a session\n", need.Weights, need.Session)
}

func texts(tokenizer *guanaco.Tokenizer) []int32 {
	tokens := must(tokenizer.Encode(prompt, true))
	fmt.Println("encode:", row("%d", tokens))
	fmt.Println("decode:", must(tokenizer.Decode(tokens)))
	bad := must(tokenizer.Encode("\xff\xff\xff\xff\xff\xff", true)) // each counts as U+FFFD
	fmt.Println("bad bytes:", row("%d", bad))
	fmt.Printf("half a character: [%s]\n", must(tokenizer.Decode(bad[len(bad)-3:len(bad)-1])))

	stream := must(guanaco.NewStream(guanaco.Options{Stops: []string{"###"}}))
	defer stream.Close()
	fmt.Print("stream:")
	for _, part := range []string{"The \xffsky\xc3", "\xbc #", "## Human"} {
		text, _, err := stream.Push([]byte(part))
		done(err)
		fmt.Printf(" [%s]", text)
	}
	fmt.Printf(" [%s] stop %d\n", must(stream.Finish()), stream.Stop())

	chat := must(guanaco.NewChat("guanaco"))
	defer chat.Close()
	done(chat.Add(guanaco.User, "What colour is the sky?"))
	fmt.Println("chat:", must(chat.Render()))
	fmt.Println("stops:", row("[%s]", must(chat.Stops())))
	return tokens
}

// tokens shows sessions by hand: feeding, scoring, going back, choosing.
func tokens(session, other *guanaco.Session, prompt []int32) {
	greedy := must(guanaco.NewSampler(guanaco.Options{Temperature: guanaco.Float(0)}))
	likeliest := func(session *guanaco.Session) int32 { return must(greedy.Sample(session.Logits())) }
	fmt.Print("surprise:")
	for _, score := range must(session.Score(prompt, guanaco.Options{}))[1:] {
		fmt.Printf(" %.3f", -score)
	}
	fmt.Println()
	fmt.Println("next:", likeliest(session))
	done(session.Rewind(9))
	fmt.Println("rewind:", session.Position(), "of", session.Context(), "holds", row("%d", session.Tokens()))
	fmt.Println("reuse:", must(session.Reuse(append(prompt[:4:4], prompt...))))
	done(session.Feed(prompt[4:], guanaco.Options{}))
	fmt.Println("feed:", session.Position(), "then", likeliest(session))
	done(session.Rewind(4))
	parts := []guanaco.Part{{Session: session, Tokens: prompt[4:]}, {Session: other, Tokens: prompt}}
	done(guanaco.FeedMany(parts, guanaco.Options{}))
	fmt.Println("feed many:", session.Position(), "then", likeliest(session),
		other.Position(), "then", likeliest(other))

	seeded := must(guanaco.NewSampler(guanaco.Options{Seed: 7, Temperature: guanaco.Float(1)}))
	var drawn []int32
	for i := 0; i < 8; i++ {
		drawn = append(drawn, must(seeded.Sample(session.Logits())))
	}
	fmt.Println("sampler:", row("%d", drawn))
	twin := must(seeded.Copy())
	fmt.Println("its copy:", must(seeded.Sample(session.Logits())), must(twin.Sample(session.Logits())))
	penal := must(guanaco.NewSampler(guanaco.Options{Temperature: guanaco.Float(0), RepetitionPenalty: guanaco.Float(100)}))
	done(penal.Accept([]int32{likeliest(session)}))
	fmt.Println("accept:", must(penal.Sample(session.Logits())))
}

func replies(ctx context.Context, session, other *guanaco.Session, ids []int32) {
	done(session.Rewind(0))
	done(other.Rewind(0))
	reply := must(session.GenerateTokens(ids, nil, guanaco.Options{Temperature: guanaco.Float(0), MaxTokens: 8}))
	var chosen []int32
	var text strings.Builder
	sum := 0.0
	for reply.Next(ctx) {
		chosen = append(chosen, reply.Token())
		text.WriteString(reply.Text())
		sum += float64(reply.Logprob())
	}
	done(reply.Err())
	fmt.Println("reply:", row("%d", chosen), "finish", int(reply.Finish()))
	fmt.Printf("its text: %s, %.3f\n", &text, sum)
	reply.Close()

	done(session.Rewind(0))
	one := must(session.Generate(prompt, nil, guanaco.Options{Seed: 1}))
	defer one.Close()
	two := must(other.Generate(prompt, must(guanaco.NewSampler(guanaco.Options{Seed: 1})), guanaco.Options{}))
	defer two.Close()
	done(guanaco.Step(one, two))
	one.Next(ctx)
	two.Next(ctx)
	fmt.Printf("step: [%s] [%s] %d %d\n", one.Text(), two.Text(), one.Tokens(), two.Tokens())
}

func failures(path string, session, other *guanaco.Session, ids []int32) {
	done(session.Rewind(0))
	_, err1 := guanaco.Load("no/such/folder", guanaco.Options{})
	err2 := session.Feed(make([]int32, 80), guanaco.Options{})
	_, err3 := guanaco.NewSampler(guanaco.Options{TopP: guanaco.Float(2)})
	for _, err := range []error{err1, err2, err3} {
		var failure *guanaco.Error
		if errors.As(err, &failure) {
			fmt.Println("error:", int(failure.Status), failure)
		}
	}

	catch := func(what string, call func()) {
		defer func() { fmt.Printf("thrown by %s: %v, position %d\n", what, recover(), session.Position()) }()
		call()
	}
	catch("progress", func() { session.Feed(ids, guanaco.Options{Progress: func(uint64, uint64) bool { panic("enough") }}) })
	catch("log", func() { guanaco.Load(path, guanaco.Options{Log: func(int, string) { panic("enough") }}) })
	err := session.Feed(ids, guanaco.Options{Progress: func(uint64, uint64) bool { return false }})
	if errors.Is(err, context.Canceled) {
		fmt.Printf("given up: status 2, position %d\n", session.Position())
	}

	var reply *guanaco.Generation
	cancel := func(uint64, uint64) bool { // in the middle of the prompt; by another goroutine, for this one is inside the call
		cancelled := make(chan struct{})
		go func() { reply.Cancel(); close(cancelled) }()
		<-cancelled
		return true
	}
	reply = must(session.GenerateTokens(ids, nil, guanaco.Options{Progress: cancel}))
	if !reply.Next(context.Background()) && reply.Err() == context.Canceled {
		fmt.Printf("cancelled: [%s] finish %d\n", reply.Text(), reply.Finish())
	}
	reply.Close()

	expired, stop := context.WithTimeout(context.Background(), 0)
	defer stop()
	reply = must(session.GenerateTokens(ids, nil, guanaco.Options{}))
	if reply.Next(expired) || reply.Err() != context.DeadlineExceeded {
		fmt.Println("expired, but told:", reply.Err())
	}
	reply.Close()

	must(session.GenerateTokens(ids, nil, guanaco.Options{})).Next(context.Background()) // and forgotten
	for tries := 0; session.Rewind(0) != nil && tries < 1000; tries++ {
		runtime.GC()
		time.Sleep(time.Millisecond) // finalizers have a goroutine of their own
	}
	fmt.Println("forgotten: position", session.Position())
	other.Close()
	if err := other.Rewind(0); errors.Is(err, guanaco.ErrInvalidArgument) && err.Error() == "session: is closed" &&
		other.Position() == -1 && len(other.Tokens()) == 0 {
		fmt.Println("closed: refused")
	}
}

func main() {
	path := "examples/models/tiny-guanaco"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	fmt.Println("version:", guanaco.Version())
	files(path)
	model := must(guanaco.Load(path, guanaco.Options{}))
	ids := texts(must(model.Tokenizer()))
	session, other := must(model.NewSession(guanaco.Options{Context: 64})), must(model.NewSession(guanaco.Options{Context: 64}))
	model.Close()
	fmt.Println("model closed, sessions go on")
	tokens(session, other, ids)
	replies(context.Background(), session, other, ids)
	failures(path, session, other, ids)
}
