// What it costs to pull a token that is already computed: Step computes it, Next is timed.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sort"
	"time"

	"guanaco"
)

func main() {
	path := "examples/models/tiny-guanaco"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	model, err := guanaco.Load(path, guanaco.Options{})
	if err != nil {
		log.Fatal(err)
	}
	session, err := model.NewSession(guanaco.Options{Context: 600})
	if err != nil {
		log.Fatal(err)
	}
	reply, err := session.Generate("Once upon a time", nil,
		guanaco.Options{Temperature: guanaco.Float(0), MaxTokens: 400, GoOnAtEndOfText: true})
	if err != nil {
		log.Fatal(err)
	}
	var times []time.Duration
	for i := 0; i < 400; i++ {
		if err := guanaco.Step(reply); err != nil {
			log.Fatal(err)
		}
		begin := time.Now()
		reply.Next(context.Background())
		times = append(times, time.Since(begin))
	}
	sort.Slice(times, func(a, b int) bool { return times[a] < times[b] })
	fmt.Printf("Go: %.2f us a token\n", times[len(times)/2].Seconds()*1e6)
}
