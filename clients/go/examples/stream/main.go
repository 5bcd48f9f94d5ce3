// Command stream prints an answer as it is made: go run ./examples/stream "Once upon a time".
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"google.golang.org/protobuf/proto"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
)

func main() {
	// Ctrl-C cancels the generation.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, strings.Join(os.Args[1:], " ")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, prompt string) error {
	client, err := inferwire.Connect("127.0.0.1:50051", nil)
	if err != nil {
		return err
	}
	defer client.Close()

	request := inferwire.Prompt(prompt)
	request.Sampling = &pb.Sampling{Temperature: proto.Float32(0)}
	request.Stopping = &pb.Stopping{MaxTokens: proto.Uint32(64)}
	for piece, err := range inferwire.Text(client.Stream(ctx, request)) {
		if err != nil {
			return err
		}
		fmt.Print(piece)
	}
	fmt.Println()
	return nil
}
