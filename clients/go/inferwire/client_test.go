package inferwire_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
)

// UNAVAILABLE and RESOURCE_EXHAUSTED without any event are tried again, three times in all; the caller sees the answer
// alone.
func TestRetriesBeforeTheFirstEvent(t *testing.T) {
	server := newFake(t,
		refusal(codes.Unavailable, "MODEL_LOADING", "1"),
		refusal(codes.ResourceExhausted, "QUEUE_FULL", "1"),
		whole("a"),
	)
	client := connect(t, server.address, nil)
	response, err := inferwire.Gather(client.Stream(t.Context(), inferwire.Prompt("Hi")))
	if err != nil || inferwire.TextOf(response.GetMessage()) != "a" {
		t.Errorf("got %v and %v, want the answer", response, err)
	}
	if got := len(server.received()); got != 3 {
		t.Errorf("the server was called %d times, want 3", got)
	}
}

// How often a refusal is repeated, by what it says.
func TestRetryPolicy(t *testing.T) {
	for name, test := range map[string]struct {
		script  script
		options inferwire.Options
		times   int
	}{
		"the third refusal reaches the caller": {script: refusal(codes.ResourceExhausted, "QUEUE_FULL", "1"), times: 3},
		"without a pushback by the policy's own delay": {
			script: refusal(codes.Unavailable, "MODEL_LOADING", ""), times: 3,
		},
		"a negative pushback forbids it": {
			script: refusal(codes.Unavailable, "UPSTREAM_PROTOCOL_ERROR", "-1"), times: 1,
		},
		"other codes are not repeated": {script: refusal(codes.NotFound, "MODEL_NOT_FOUND", ""), times: 1},
		"after the first event nothing is repeated": {
			script: script{
				events:  []proto.Message{started(), text("a")},
				failure: refusal(codes.Unavailable, "DRAINING", "1").failure,
			},
			times: 1,
		},
		"it can be switched off": {
			script:  refusal(codes.Unavailable, "MODEL_LOADING", "1"),
			options: inferwire.Options{DisableRetry: true},
			times:   1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newFake(t, test.script)
			client := connect(t, server.address, &test.options)
			_, err := inferwire.Gather(client.Stream(t.Context(), inferwire.Prompt("Hi")))
			if err == nil {
				t.Error("the call ended OK")
			}
			if got := len(server.received()); got != test.times {
				t.Errorf("the server was called %d times, want %d", got, test.times)
			}
		})
	}
}

// A long prompt is repeated as a short one is.
func TestRetriesALargeRequest(t *testing.T) {
	server := newFake(t, refusal(codes.Unavailable, "MODEL_LOADING", "1"), script{})
	client := connect(t, server.address, nil)
	if _, err := client.Complete(t.Context(), inferwire.Prompt(strings.Repeat("a", 4<<20))); err != nil {
		t.Error(err)
	}
}

// A load changes the server: to repeat it is the caller's decision.
func TestLoadIsNotRepeated(t *testing.T) {
	server := newFake(t, refusal(codes.Unavailable, "MODEL_UNLOADING", "1"))
	client := connect(t, server.address, nil)
	if _, err := client.Load(t.Context(), &pb.LoadRequest{Model: "demo"}); err == nil {
		t.Error("the load ended OK")
	}
	for _, err := range client.StreamLoad(t.Context(), &pb.LoadRequest{Model: "demo"}) {
		wantError(t, err, codes.Unavailable, "MODEL_UNLOADING")
	}
	if got := len(server.received()); got != 2 {
		t.Errorf("the server was called %d times, want 2", got)
	}
}

// An arm that this version does not know is skipped on a real wire too, and OK without a completion is no answer.
func TestStreamHasItsLaw(t *testing.T) {
	var unknown pb.StreamCompleteResponse
	if err := proto.Unmarshal([]byte("\xfa\x07\x03new"), &unknown); err != nil {
		t.Fatal(err)
	}
	server := newFake(t, script{events: []proto.Message{&unknown, started(), &unknown, text("a"), &unknown}})
	client := connect(t, server.address, nil)
	var seen []*pb.StreamCompleteResponse
	for event, err := range client.Stream(t.Context(), inferwire.Prompt("Hi")) {
		if err != nil {
			wantError(t, err, codes.Aborted, "STREAM_TRUNCATED")
			break
		}
		seen = append(seen, event)
	}
	if len(seen) != 2 || !proto.Equal(seen[0], started()) || !proto.Equal(seen[1], text("a")) {
		t.Errorf("saw %v, want started and the text", seen)
	}
}

// Each way to leave a stream early ends the call at the server.
func TestLeavingCancels(t *testing.T) {
	for name, leave := range map[string]func(context.Context, *inferwire.Client) error{
		"break": func(ctx context.Context, client *inferwire.Client) error {
			for range client.Stream(ctx, inferwire.Prompt("Hi")) {
				break
			}
			return nil
		},
		"break out of the text": func(ctx context.Context, client *inferwire.Client) error {
			for range inferwire.Text(client.Stream(ctx, inferwire.Prompt("Hi"))) {
				break
			}
			return nil
		},
		"panic": func(ctx context.Context, client *inferwire.Client) error {
			defer func() { _ = recover() }()
			for range client.Stream(ctx, inferwire.Prompt("Hi")) {
				panic("out")
			}
			return nil
		},
		"context": func(ctx context.Context, client *inferwire.Client) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			for _, err := range client.Stream(ctx, inferwire.Prompt("Hi")) {
				if err != nil {
					return err
				}
				cancel()
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newFake(t, script{events: []proto.Message{started(), text("a")}, hang: true})
			client := connect(t, server.address, nil)
			err := leave(t.Context(), client)
			if name == "context" {
				// Nobody takes what came for a whole answer.
				wantError(t, err, codes.Canceled, "")
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%v is not context.Canceled", err)
				}
			} else if err != nil {
				t.Error(err)
			}
			<-server.gone
		})
	}
}

// Every loop over a stream is a call of its own.
func TestEachLoopIsACall(t *testing.T) {
	server := newFake(t, whole("a"))
	stream := connect(t, server.address, nil).Stream(t.Context(), inferwire.Prompt("Hi"))
	if got := len(server.received()); got != 0 {
		t.Errorf("the server was called %d times before the first loop", got)
	}
	for range 2 {
		if _, err := inferwire.Gather(stream); err != nil {
			t.Error(err)
		}
	}
	if got := len(server.received()); got != 2 {
		t.Errorf("the server was called %d times, want 2", got)
	}
}

// The caller's deadline counts, else the default; loads and watches have none of their own.
func TestDeadlines(t *testing.T) {
	server := newFake(t, script{})
	client := connect(t, server.address, &inferwire.Options{DefaultTimeout: 50 * time.Second})
	sooner, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	later, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	for _, test := range []struct {
		call func() error
		from time.Duration
		to   time.Duration
	}{
		{from: 30 * time.Second, to: 50 * time.Second, call: func() error {
			_, err := client.Complete(t.Context(), inferwire.Prompt("Hi"))
			return err
		}},
		{from: 30 * time.Second, to: 50 * time.Second, call: func() error {
			for range client.Stream(t.Context(), inferwire.Prompt("Hi")) {
			}
			return nil
		}},
		{from: 5 * time.Second, to: 20 * time.Second, call: func() error {
			_, err := client.ListModels(sooner, nil)
			return err
		}},
		{from: 60 * time.Second, to: 100 * time.Second, call: func() error {
			_, err := client.ListModels(later, nil)
			return err
		}},
		{call: func() error {
			_, err := client.Load(t.Context(), &pb.LoadRequest{Model: "demo"})
			return err
		}},
		{call: func() error {
			for range client.StreamLoad(t.Context(), &pb.LoadRequest{Model: "demo"}) {
			}
			return nil
		}},
		{call: func() error {
			for range client.WatchModels(t.Context(), nil) {
			}
			return nil
		}},
	} {
		if err := test.call(); err != nil {
			t.Fatal(err)
		}
		calls := server.received()
		last := calls[len(calls)-1]
		if last.timeLeft < test.from || last.timeLeft > test.to {
			t.Errorf("%s had %v, want from %v to %v", last.method, last.timeLeft, test.from, test.to)
		}
	}
}

// Every call carries the key, also one of another service, and the caller's own metadata.
func TestMetadata(t *testing.T) {
	server := newFake(t, script{})
	client := connect(t, server.address, &inferwire.Options{Token: "secret"})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "mine")
	if _, err := client.Complete(ctx, inferwire.Prompt("Hi")); err != nil {
		t.Error(err)
	}
	for range client.Stream(ctx, inferwire.Prompt("Hi")) {
	}
	if _, err := pb.NewInferenceServiceClient(client.Conn()).Health(ctx, nil); err != nil {
		t.Error(err)
	}
	if got := len(server.received()); got != 3 {
		t.Errorf("the server was called %d times, want 3", got)
	}
	for _, call := range server.received() {
		for key, want := range map[string]string{"authorization": "Bearer secret", "x-request-id": "mine"} {
			if got := call.metadata.Get(key); !slices.Equal(got, []string{want}) {
				t.Errorf("%s had %s %q, want %q", call.method, key, got, want)
			}
		}
		if got := call.metadata.Get("user-agent"); !strings.HasPrefix(fmt.Sprint(got), "[inferwire-go/"+inferwire.Version) {
			t.Errorf("the user agent is %q", got)
		}
	}
}

// Each RPC of the contract has one method, which sends its request as it is.
func TestEveryMethodReachesItsRPC(t *testing.T) {
	server := newFake(t, script{})
	client := connect(t, server.address, nil)
	ctx := t.Context()
	request := &pb.CompleteRequest{
		Input:    &pb.CompleteRequest_Prompt{Prompt: "Hi"},
		Sampling: &pb.Sampling{Seed: proto.Uint32(0), TypicalP: proto.Float32(0.5)},
	}
	load := &pb.LoadRequest{Model: "demo", KeepAlive: durationpb.New(1500 * time.Millisecond), Replace: true}
	want := map[string]proto.Message{
		"Complete":       request,
		"StreamComplete": request,
		"CountTokens":    request,
		"Embed":          &pb.EmbedRequest{Inputs: []string{"one text"}, Normalize: proto.Bool(false)},
		"Tokenize":       &pb.TokenizeRequest{Text: "Hi", ParseSpecial: true},
		"Detokenize":     &pb.DetokenizeRequest{TokenIds: []uint32{1, 2}},
		"ListModels":     &pb.ListModelsRequest{},
		"GetModel":       &pb.GetModelRequest{Model: "demo"},
		"WatchModels":    &pb.WatchModelsRequest{},
		"ListBackends":   &pb.ListBackendsRequest{},
		"Health":         &pb.HealthRequest{},
		"Load":           load,
		"StreamLoad":     load,
		"Unload":         &pb.UnloadRequest{Model: "demo", DrainTimeout: durationpb.New(0)},
	}
	fails := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	fails(client.Complete(ctx, request))
	for range client.Stream(ctx, request) {
	}
	fails(client.CountTokens(ctx, request))
	fails(client.Embed(ctx, want["Embed"].(*pb.EmbedRequest)))
	fails(client.Tokenize(ctx, want["Tokenize"].(*pb.TokenizeRequest)))
	fails(client.Detokenize(ctx, want["Detokenize"].(*pb.DetokenizeRequest)))
	fails(client.ListModels(ctx, nil))
	fails(client.GetModel(ctx, want["GetModel"].(*pb.GetModelRequest)))
	for range client.WatchModels(ctx, nil) {
	}
	fails(client.ListBackends(ctx, nil))
	fails(client.Health(ctx, nil))
	fails(client.Load(ctx, load))
	for range client.StreamLoad(ctx, load) {
	}
	fails(client.Unload(ctx, want["Unload"].(*pb.UnloadRequest)))

	sent := make(map[string]proto.Message)
	for _, call := range server.received() {
		sent[call.method] = call.request
	}
	for _, service := range []grpc.ServiceDesc{pb.InferenceService_ServiceDesc, pb.ModelService_ServiceDesc} {
		var methods []string
		for _, method := range service.Methods {
			methods = append(methods, method.MethodName)
		}
		for _, method := range service.Streams {
			methods = append(methods, method.StreamName)
		}
		for _, method := range methods {
			if !proto.Equal(sent[method], want[method]) {
				t.Errorf("%s got %v, want %v", method, sent[method], want[method])
			}
		}
	}
}

// Code, reason, metadata, delay, violations and the thing's name arrive as they were sent.
func TestErrorSaysAllThatTheServerSaid(t *testing.T) {
	server := newFake(t, script{failure: &failure{code: codes.NotFound, message: "no such model", details: []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: "MODEL_NOT_FOUND", Domain: "inferwire.dev", Metadata: map[string]string{"model": "nope"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(50 * time.Millisecond)},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "model", Description: "is unknown"},
		}},
		&errdetails.ResourceInfo{ResourceName: "nope"},
		&errdetails.Help{},
	}}})
	_, err := connect(t, server.address, nil).ListModels(t.Context(), nil)
	got := wantError(t, err, codes.NotFound, "MODEL_NOT_FOUND")
	if got.KnownReason() != pb.ErrorReason_ERROR_REASON_MODEL_NOT_FOUND {
		t.Errorf("the reason is %v", got.KnownReason())
	}
	if got.Message != "no such model" || got.Resource != "nope" || got.Metadata["model"] != "nope" {
		t.Errorf("got %q, %q, %v", got.Message, got.Resource, got.Metadata)
	}
	if got.RetryDelay == nil || *got.RetryDelay != 50*time.Millisecond {
		t.Errorf("the delay is %v", got.RetryDelay)
	}
	if !slices.Equal(got.Violations, []inferwire.Violation{{Field: "model", Description: "is unknown"}}) {
		t.Errorf("the violations are %v", got.Violations)
	}
	if want := "MODEL_NOT_FOUND: no such model; model: is unknown"; got.Error() != want {
		t.Errorf("it reads %q, want %q", got, want)
	}
	// gRPC's own door, also through a wrapping.
	if wrapped := fmt.Errorf("asking: %w", err); status.Code(wrapped) != codes.NotFound || len(status.Convert(err).Details()) != 5 {
		t.Errorf("gRPC reads %v", status.Convert(wrapped))
	}
}

// What an interceptor, or gRPC itself, puts around a status does not hide it.
func TestErrorIsFoundInside(t *testing.T) {
	server := newFake(t, refusal(codes.NotFound, "MODEL_NOT_FOUND", ""))
	wrap := func(
		ctx context.Context, method string, request, response any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
		options ...grpc.CallOption,
	) error {
		return fmt.Errorf("after one attempt: %w", invoke(ctx, method, request, response, conn, options...))
	}
	client := connect(t, server.address, &inferwire.Options{
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(wrap)},
	})
	_, err := client.ListModels(t.Context(), nil)
	if got := wantError(t, err, codes.NotFound, "MODEL_NOT_FOUND"); got.Message != "no" {
		t.Errorf("the message is %q", got.Message)
	}
}

// A reason of a newer server stays readable.
func TestErrorKeepsAnUnknownReason(t *testing.T) {
	server := newFake(t, refusal(codes.Aborted, "SOLAR_FLARE", ""))
	_, err := connect(t, server.address, nil).ListModels(t.Context(), nil)
	got := wantError(t, err, codes.Aborted, "SOLAR_FLARE")
	if got.KnownReason() != pb.ErrorReason_ERROR_REASON_UNSPECIFIED || got.RetryDelay != nil {
		t.Errorf("got %v and %v", got.KnownReason(), got.RetryDelay)
	}
}

// Details that are absent, garbage or of another domain leave code and message.
func TestErrorLivesWithoutDetails(t *testing.T) {
	garbage := "\xff\xff\xff"
	half, err := proto.Marshal(&spb.Status{Code: int32(codes.Internal), Message: "plain", Details: []*anypb.Any{
		{TypeUrl: "type.googleapis.com/google.rpc.ResourceInfo", Value: []byte("\x12\x01x")},
		{TypeUrl: "type.googleapis.com/google.rpc.ErrorInfo", Value: []byte(garbage)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	inside := string(half)
	for name, failed := range map[string]*failure{
		"absent":         {},
		"garbage":        {rawDetails: &garbage},
		"garbage inside": {rawDetails: &inside},
		"foreign":        {details: []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: "PROXY_SAYS_NO", Domain: "proxy.example"}}},
	} {
		t.Run(name, func(t *testing.T) {
			failed.code, failed.message = codes.Internal, "plain"
			server := newFake(t, script{failure: failed})
			_, err := connect(t, server.address, nil).ListModels(t.Context(), nil)
			got := wantError(t, err, codes.Internal, "")
			if got.Message != "plain" || got.Metadata != nil || got.Resource != "" || got.Error() != "INTERNAL: plain" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// A server that is not there is UNAVAILABLE without a reason.
func TestNoServer(t *testing.T) {
	client := connect(t, "127.0.0.1:1", nil)
	_, err := client.ListModels(t.Context(), nil)
	wantError(t, err, codes.Unavailable, "")
	_, err = inferwire.Gather(client.Stream(t.Context(), inferwire.Prompt("Hi")))
	wantError(t, err, codes.Unavailable, "")
}

// The stubs of another service fail with the same error.
func TestOtherServicesFailAlike(t *testing.T) {
	server := newFake(t)
	health := grpc_health_v1.NewHealthClient(connect(t, server.address, nil).Conn())
	_, err := health.Check(t.Context(), nil)
	wantError(t, err, codes.Unimplemented, "")
	call, err := health.Watch(t.Context(), nil)
	if err == nil {
		_, err = call.Recv()
	}
	wantError(t, err, codes.Unimplemented, "")
}

// A message over 32 MiB stays here, on every kind of call; one below it goes.
func TestMessageSizes(t *testing.T) {
	piece := strings.Repeat("a", 20<<20)
	server := newFake(t, whole(piece))
	client := connect(t, server.address, nil)
	response, err := inferwire.Gather(client.Stream(t.Context(), inferwire.Prompt(piece)))
	if err != nil || inferwire.TextOf(response.GetMessage()) != piece {
		t.Errorf("20 MiB there and back: %v", err)
	}
	tooLarge := &pb.CompleteRequest{Model: string(bytes.Repeat([]byte("a"), 33<<20))}
	_, err = client.Complete(t.Context(), tooLarge)
	wantError(t, err, codes.ResourceExhausted, "")
	_, err = inferwire.Gather(client.Stream(t.Context(), tooLarge))
	wantError(t, err, codes.ResourceExhausted, "")
	if got := len(server.received()); got != 1 {
		t.Errorf("the server was called %d times, want 1", got)
	}
}
