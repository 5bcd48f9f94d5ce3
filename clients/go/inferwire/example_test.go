package inferwire_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
)

func Example() {
	client, err := inferwire.Connect("127.0.0.1:50051", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for piece, err := range inferwire.Text(client.Stream(context.Background(), inferwire.Prompt("Once upon a time"))) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(piece)
	}
}

func ExampleConnect() {
	config, err := inferwire.TLSFromFiles("ca.pem", "client.pem", "client.key")
	if err != nil {
		log.Fatal(err)
	}
	client, err := inferwire.Connect("dns:///inferwire.example:443", &inferwire.Options{
		Token:          "the key",
		TLS:            config,
		DefaultTimeout: time.Minute,
		Balance:        true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(client)
}

func ExampleClient_Complete() {
	client, err := inferwire.Connect("127.0.0.1:50051", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	request := inferwire.Chat(inferwire.System("Be brief."), inferwire.User("Why is the sky blue?"))
	request.Model = "demo"
	request.Sampling = &pb.Sampling{Temperature: proto.Float32(0)} // A zero is said; what is nil is the server's to choose.
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-request-id", "mine")
	response, err := client.Complete(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(inferwire.TextOf(response.GetMessage()))

	// To go on, append the answer and the next turn.
	chat := request.GetChat()
	chat.Messages = append(chat.Messages, response.GetMessage(), inferwire.User("And at night?"))
}

func ExampleClient_Stream() {
	client, err := inferwire.Connect("127.0.0.1:50051", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for event, err := range client.Stream(context.Background(), inferwire.Prompt("Once upon a time")) {
		if err != nil {
			log.Fatal(err)
		}
		switch event := event.GetEvent().(type) {
		case *pb.StreamCompleteResponse_Text:
			fmt.Print(event.Text.GetText())
		case *pb.StreamCompleteResponse_ToolCall:
			return // To leave the loop cancels the generation.
		case *pb.StreamCompleteResponse_Completion:
			fmt.Println(event.Completion.GetUsage())
		}
	}
}

func ExampleGather() {
	client, err := inferwire.Connect("127.0.0.1:50051", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	response, err := inferwire.Gather(client.Stream(context.Background(), inferwire.Prompt("Once upon a time")))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(inferwire.TextOf(response.GetMessage()), response.GetCompletion().GetFinishReason())
}

func ExampleGatherer() {
	var gatherer inferwire.Gatherer
	for _, piece := range []string{"Hel", "lo"} {
		gatherer.Add(&pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Text{Text: &pb.TextDelta{Text: piece}}})
	}
	fmt.Println(inferwire.TextOf(gatherer.Response().GetMessage()))
	// Output: Hello
}

func ExampleError() {
	client, err := inferwire.Connect("127.0.0.1:50051", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	request := inferwire.Prompt("Hi")
	request.Model = "nope"
	_, err = client.Complete(context.Background(), request)
	var failure *inferwire.Error
	if errors.As(err, &failure) && failure.KnownReason() == pb.ErrorReason_ERROR_REASON_MODEL_NOT_FOUND {
		fmt.Println("no such model:", failure.Resource)
	}
}
