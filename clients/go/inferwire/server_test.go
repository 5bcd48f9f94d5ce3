package inferwire_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
	"inferwire.dev/go/internal/scripted"
)

// This file asks a real server, which says what a script tells it; the server's scripted.py has the language.

var startServer = sync.OnceValues(scripted.Start)

func TestMain(m *testing.M) {
	code := m.Run()
	if server, err := startServer(); err == nil {
		server.Stop()
	}
	os.Exit(code)
}

// real returns a client of the real server.
func real(t *testing.T) *inferwire.Client {
	t.Helper()
	server, err := startServer()
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, server.Address, nil)
}

// says returns the request to play these events.
func says(events ...string) *pb.CompleteRequest {
	return inferwire.Prompt(`{"events": [` + strings.Join(events, ", ") + `]}`)
}

const refusal5ms = `{"error": {"reason": "QUEUE_FULL", "message": "full", "metadata": {"model": "scripted", "queueCapacity": "64"}, "retry_delay_seconds": 0.005}}`

// arms returns the kinds of a stream's events.
func arms(t *testing.T, client *inferwire.Client, request *pb.CompleteRequest) string {
	t.Helper()
	var kinds []string
	for event, err := range client.Stream(t.Context(), request) {
		if err != nil {
			t.Fatal(err)
		}
		arm := event.ProtoReflect().WhichOneof(event.ProtoReflect().Descriptor().Oneofs().ByName("event"))
		kinds = append(kinds, string(arm.Name()))
	}
	return strings.Join(kinds, " ")
}

// A unary answer is whole.
func TestComplete(t *testing.T) {
	response, err := real(t).Complete(t.Context(), says(`{"text": "Hel"}`, `{"text": "lo"}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := inferwire.TextOf(response.GetMessage()); got != "Hello" {
		t.Errorf("it says %q", got)
	}
	if got := response.GetCompletion().GetFinishReason(); got != pb.FinishReason_FINISH_REASON_STOP {
		t.Errorf("it ended with %v", got)
	}
}

// `started` is first, `completion` is last, and what lies between has the script's order.
func TestStreamOrder(t *testing.T) {
	client := real(t)
	request := says(`{"reasoning": "hm"}`, `{"text": "a"}`, `{"tool_call": {"id": "c", "name": "f"}}`, `{"text": "b"}`)
	if got := arms(t, client, request); got != "started reasoning text tool_call text completion" {
		t.Errorf("the events are %s", got)
	}
	request.Output = &pb.OutputOptions{Progress: true}
	if got := arms(t, client, request); !strings.HasPrefix(got, "started progress ") {
		t.Errorf("with progress the events are %s", got)
	}
	request = says(`{"text": "a"}`)
	request.Stopping = &pb.Stopping{MaxTokens: proto.Uint32(0)}
	if got := arms(t, client, request); got != "started completion" {
		t.Errorf("of an empty answer the events are %s", got)
	}
}

// A gathered stream is the unary answer, but for the time that it took.
func TestGatherEqualsUnary(t *testing.T) {
	client := real(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "the-same")
	for name, request := range map[string]*pb.CompleteRequest{
		"words": inferwire.Chat(inferwire.System("Be brief."), inferwire.User("one two three four")),
		"parts": says(
			`{"reasoning": "h"}`, `{"reasoning": "m"}`, `{"text": "köln ", "repeat": 3}`,
			`{"tool_call": {"index": 0, "id": "c0", "name": "add"}}`, `{"tool_call": {"index": 0, "arguments": "{\"a\""}}`,
			`{"tool_call": {"index": 1, "id": "c1", "name": "sub", "arguments": "{}"}}`,
			`{"tool_call": {"index": 0, "arguments": ":1}"}}`, `{"text": "月"}`,
		),
		"empty": says(),
	} {
		t.Run(name, func(t *testing.T) {
			request.Sampling = &pb.Sampling{Seed: proto.Uint32(7)}
			request.Output = &pb.OutputOptions{Message: true}
			unary, err := client.Complete(ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			gathered, err := inferwire.Gather(client.Stream(ctx, request))
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(gathered.GetMessage(), gathered.GetCompletion().GetMessage()) && len(gathered.GetMessage().GetParts()) > 0 {
				t.Errorf("gathered %v, the server says %v", gathered.GetMessage(), gathered.GetCompletion().GetMessage())
			}
			unary.Completion.Timing, gathered.Completion.Timing = nil, nil
			if !proto.Equal(gathered, unary) {
				t.Errorf("gathered %v, want %v", gathered, unary)
			}
		})
	}
}

// A tool call comes as its name once and then fragments; together they are one part.
func TestToolCallFragments(t *testing.T) {
	response, err := inferwire.Gather(real(t).Stream(t.Context(), says(
		`{"tool_call": {"index": 0, "id": "c0", "name": "add"}}`,
		`{"tool_call": {"index": 0, "arguments": "{\"a\""}}`,
		`{"tool_call": {"index": 0, "arguments": ": 1}"}}`,
	)))
	if err != nil {
		t.Fatal(err)
	}
	if got := brief(response.GetMessage()); got != `call c0 add {"a": 1}` {
		t.Errorf("it is %s", got)
	}
	if got := response.GetCompletion().GetFinishReason(); got != pb.FinishReason_FINISH_REASON_TOOL_CALLS {
		t.Errorf("it ended with %v", got)
	}
}

// A failure before the first event has all that the server said, after two more attempts.
func TestErrorBeforeTheFirstEvent(t *testing.T) {
	client := real(t)
	_, unary := client.Complete(t.Context(), says(refusal5ms))
	_, streamed := inferwire.Gather(client.Stream(t.Context(), says(refusal5ms)))
	for _, err := range []error{unary, streamed} {
		got := wantError(t, err, codes.ResourceExhausted, "QUEUE_FULL")
		if got.Message != "full" || got.Metadata["queueCapacity"] != "64" {
			t.Errorf("got %q and %v", got.Message, got.Metadata)
		}
		if got.RetryDelay == nil || *got.RetryDelay != 5*time.Millisecond {
			t.Errorf("the delay is %v", got.RetryDelay)
		}
	}
}

// A failure in mid-stream comes after what was said, and tells how much that was.
func TestErrorInMidStream(t *testing.T) {
	var pieces int
	var failure error
	events := real(t).Stream(t.Context(), says(`{"text": "a", "repeat": 3}`, `{"error": {"reason": "ENGINE_CRASHED"}}`))
	for _, err := range inferwire.Text(events) {
		if err != nil {
			failure = err
			break
		}
		pieces++
	}
	got := wantError(t, failure, codes.Aborted, "ENGINE_CRASHED")
	if pieces == 0 || got.Metadata["tokensEmitted"] != "3" {
		t.Errorf("after %d pieces the metadata is %v", pieces, got.Metadata)
	}
}

// A field that the server refuses is named.
func TestViolations(t *testing.T) {
	_, err := real(t).Complete(t.Context(), inferwire.Prompt(""))
	got := wantError(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	if len(got.Violations) != 1 || got.Violations[0].Field != "prompt" {
		t.Errorf("the violations are %v", got.Violations)
	}
	_, err = real(t).GetModel(t.Context(), &pb.GetModelRequest{Model: "nope"})
	if got := wantError(t, err, codes.NotFound, "MODEL_NOT_FOUND"); got.Resource != "nope" {
		t.Errorf("the resource is %q", got.Resource)
	}
}

// A stop text ends the answer before it, wherever the events are cut.
func TestStopString(t *testing.T) {
	request := says(`{"text": "one E"}`, `{"text": "ND two"}`)
	request.Stopping = &pb.Stopping{Stop: []string{"END"}}
	response, err := inferwire.Gather(real(t).Stream(t.Context(), request))
	if err != nil {
		t.Fatal(err)
	}
	if got := inferwire.TextOf(response.GetMessage()); got != "one " {
		t.Errorf("it says %q", got)
	}
	if got := response.GetCompletion(); got.GetFinishReason() != pb.FinishReason_FINISH_REASON_STOP_STRING || got.GetStopString() != "END" {
		t.Errorf("it ended with %v", got)
	}
}

// The call's own deadline is DEADLINE_EXCEEDED, on a unary call and on a stream, by context or by default.
func TestDeadline(t *testing.T) {
	server, err := startServer()
	if err != nil {
		t.Fatal(err)
	}
	short := connect(t, server.Address, &inferwire.Options{DefaultTimeout: 100 * time.Millisecond})
	request := says(`{"text": "a"}`, `{"delay_seconds": 60}`)
	_, unary := short.Complete(t.Context(), request)
	_, streamed := inferwire.Gather(short.Stream(t.Context(), request))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, own := inferwire.Gather(real(t).Stream(ctx, request))
	for _, err := range []error{unary, streamed, own} {
		var got *inferwire.Error
		if !errors.As(err, &got) || got.Code != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DEADLINE_EXCEEDED", err)
		}
	}
}

// A stream that is left after some events is no longer in flight at the server.
func TestCancelFreesTheServer(t *testing.T) {
	client := real(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	inFlight := func() (sum uint32) {
		health, err := client.Health(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, model := range health.GetModels() {
			sum += model.GetStreamsInFlight()
		}
		return sum
	}
	num := 0
	for _, err := range client.Stream(t.Context(), says(`{"text": "a", "repeat": 5}`, `{"delay_seconds": 60}`)) {
		if err != nil {
			t.Fatal(err)
		}
		if num++; num == 2 {
			if got := inFlight(); got != 1 {
				t.Errorf("%d streams are in flight while one is read", got)
			}
			break
		}
	}
	for inFlight() != 0 {
	}
}

// Zero is said as zero, and what is unset is the server's to choose.
func TestZeroAndUnset(t *testing.T) {
	client := real(t)
	request := inferwire.Prompt("one two")
	request.Sampling = &pb.Sampling{Seed: proto.Uint32(0), Temperature: proto.Float32(0)}
	zero, err := client.Complete(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	sampling := zero.GetStarted().GetSampling()
	if sampling.Seed == nil || *sampling.Seed != 0 || sampling.Temperature == nil || *sampling.Temperature != 0 {
		t.Errorf("the sampling in force is %v, want seed 0 and temperature 0", sampling)
	}
	unset, err := client.Complete(t.Context(), inferwire.Prompt("one two"))
	if err != nil {
		t.Fatal(err)
	}
	if sampling := unset.GetStarted().GetSampling(); sampling.Seed == nil || sampling.Temperature != nil {
		t.Errorf("the sampling in force is %v, want a seed and no temperature", sampling)
	}
}

// An answer may be much larger than gRPC's own limit of 4 MiB.
func TestLargeAnswer(t *testing.T) {
	piece := strings.Repeat("a", 64<<10)
	response, err := real(t).Complete(t.Context(), says(fmt.Sprintf(`{"text": "%s", "repeat": 256}`, piece)))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(inferwire.TextOf(response.GetMessage())); got != 16<<20 {
		t.Errorf("it has %d bytes", got)
	}
}

// The caller's request id is told back.
func TestRequestID(t *testing.T) {
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "mine")
	response, err := real(t).Complete(ctx, inferwire.Prompt("Hi"))
	if err != nil || response.GetStarted().GetId() != "mine" {
		t.Errorf("got %v and %v, want the id", response.GetStarted(), err)
	}
}

// Loads that the server refuses say why; to unload what is not there is no failure.
func TestLoadAndUnload(t *testing.T) {
	client := real(t)
	request := &pb.LoadRequest{Model: "x", Source: &pb.ModelSource{Source: &pb.ModelSource_Local{
		Local: &pb.LocalSource{Path: "../x.gguf"},
	}}}
	_, err := client.Load(t.Context(), request)
	wantError(t, err, codes.InvalidArgument, "MODEL_PATH_NOT_ALLOWED")
	for _, err := range client.StreamLoad(t.Context(), request) {
		wantError(t, err, codes.InvalidArgument, "MODEL_PATH_NOT_ALLOWED")
	}
	unloaded, err := client.Unload(t.Context(), &pb.UnloadRequest{Model: "x", DrainTimeout: durationpb.New(0)})
	if err != nil || unloaded.GetWasLoaded() {
		t.Errorf("got %v and %v", unloaded, err)
	}
}

// The questions about models agree with each other.
func TestModels(t *testing.T) {
	client := real(t)
	models, err := client.ListModels(t.Context(), nil)
	if err != nil || len(models.GetModels()) != 1 || models.GetDefaultModel() != "scripted" {
		t.Fatalf("got %v and %v", models, err)
	}
	model, err := client.GetModel(t.Context(), &pb.GetModelRequest{Model: "scripted"})
	if err != nil || model.GetModel().GetState() != pb.ModelState_MODEL_STATE_READY {
		t.Errorf("got %v and %v", model, err)
	}
	backends, err := client.ListBackends(t.Context(), nil)
	if err != nil || len(backends.GetBackends()) != 1 {
		t.Errorf("got %v and %v", backends, err)
	}
	for snapshot, err := range client.WatchModels(t.Context(), nil) {
		if err != nil || len(snapshot.GetModels()) != 1 {
			t.Errorf("got %v and %v", snapshot, err)
		}
		break
	}
}

// Tokens go there and back; what the scripted model cannot do is refused.
func TestTokens(t *testing.T) {
	client := real(t)
	tokens, err := client.Tokenize(t.Context(), &pb.TokenizeRequest{Text: "é"})
	if err != nil || len(tokens.GetTokenIds()) != 2 {
		t.Fatalf("got %v and %v", tokens, err)
	}
	joined, err := client.Detokenize(t.Context(), &pb.DetokenizeRequest{TokenIds: tokens.GetTokenIds()[:1]})
	if err != nil || string(joined.GetData()) != "\xc3" {
		t.Errorf("got %v and %v", joined, err)
	}
	count, err := client.CountTokens(t.Context(), inferwire.Prompt("one two"))
	if err != nil || count.GetTokens() != 2 {
		t.Errorf("got %v and %v", count, err)
	}
	_, err = client.Embed(t.Context(), &pb.EmbedRequest{Inputs: []string{"a"}})
	wantError(t, err, codes.FailedPrecondition, "UNSUPPORTED_BY_BACKEND")
}

// The standard health service answers on the same connection.
func TestStandardHealth(t *testing.T) {
	health := grpc_health_v1.NewHealthClient(real(t).Conn())
	response, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "model/scripted"})
	if err != nil || response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("got %v and %v", response, err)
	}
	_, err = health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "nope"})
	wantError(t, err, codes.NotFound, "")
}

// Goroutines may share a client.
func TestSharedClient(t *testing.T) {
	client := real(t)
	var group sync.WaitGroup
	for range 16 {
		group.Add(1)
		go func() {
			defer group.Done()
			response, err := inferwire.Gather(client.Stream(t.Context(), says(`{"text": "a", "repeat": 500}`)))
			if err != nil || len(inferwire.TextOf(response.GetMessage())) != 500 {
				t.Errorf("got %v", err)
			}
		}()
	}
	group.Wait()
}
