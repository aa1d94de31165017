// Asks one question and prints the answer while it is being written.
package main

import (
	"context"
	"fmt"
	"os"

	"guanaco"
)

func run() error {
	path := "examples/models/tiny-guanaco"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	model, err := guanaco.Load(path, guanaco.Options{})
	if err != nil {
		return err
	}
	defer model.Close()
	session, err := model.NewSession(guanaco.Options{Context: 2048})
	if err != nil {
		return err
	}
	defer session.Close()
	chat, err := guanaco.NewChat("guanaco")
	if err != nil {
		return err
	}
	defer chat.Close()
	if err := chat.Add(guanaco.User, "What colour is the sky?"); err != nil {
		return err
	}
	prompt, err := chat.Render()
	if err != nil {
		return err
	}
	stops, err := chat.Stops()
	if err != nil {
		return err
	}
	reply, err := session.Generate(prompt, nil, guanaco.Options{Seed: 7, Stops: stops})
	if err != nil {
		return err
	}
	defer reply.Close()
	for reply.Next(context.Background()) {
		fmt.Print(reply.Text())
	}
	fmt.Println()
	return reply.Err()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}
