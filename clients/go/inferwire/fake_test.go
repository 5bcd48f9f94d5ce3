package inferwire_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
)

// A fake is a server on a real port that breaks the contract as a test asks, which a real inferwire never does. Each call
// takes the next script; the last one answers all further calls.
type fake struct {
	pb.UnimplementedInferenceServiceServer
	pb.UnimplementedModelServiceServer

	address string
	// gone tells the end of every call that a script made hang.
	gone chan struct{}

	mutex   sync.Mutex
	scripts []script
	calls   []received
}

// A script is one call's answer.
type script struct {
	events []proto.Message
	// hang: nothing more comes until the caller is gone.
	hang bool
	// failure is the status after the events; nil: OK.
	failure *failure
}

// A failure is a status as the contract tells it, or not.
type failure struct {
	code       codes.Code
	message    string
	details    []protoadapt.MessageV1
	rawDetails *string
	pushback   string
}

// received is what a call brought.
type received struct {
	method   string
	request  proto.Message
	metadata metadata.MD
	// timeLeft is 0 for a call without a deadline.
	timeLeft time.Duration
}

func newFake(t *testing.T, scripts ...script) *fake {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{address: listener.Addr().String(), gone: make(chan struct{}, 16), scripts: scripts}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	f.register(server)
	serve(t, server, listener)
	return f
}

func (f *fake) register(server *grpc.Server) {
	pb.RegisterInferenceServiceServer(server, f)
	pb.RegisterModelServiceServer(server, f)
}

func serve(t *testing.T, server *grpc.Server, listener net.Listener) {
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// connect returns a client of the server at address that lives as long as the test.
func connect(t *testing.T, address string, options *inferwire.Options) *inferwire.Client {
	t.Helper()
	client, err := inferwire.Connect(address, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// received returns the calls so far.
func (f *fake) received() []received {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.calls
}

func (f *fake) note(ctx context.Context, method string, request proto.Message) script {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	call := received{method: method, request: request}
	call.metadata, _ = metadata.FromIncomingContext(ctx)
	if deadline, limited := ctx.Deadline(); limited {
		call.timeLeft = time.Until(deadline)
	}
	f.calls = append(f.calls, call)
	var next script
	if len(f.scripts) > 0 {
		next = f.scripts[0]
	}
	if len(f.scripts) > 1 {
		f.scripts = f.scripts[1:]
	}
	return next
}

func (f *fake) play(script script, call grpc.ServerStream) error {
	if script.hang {
		// The caller may be gone before all events are sent.
		defer func() {
			<-call.Context().Done()
			f.gone <- struct{}{}
		}()
	}
	for _, event := range script.events {
		if err := call.SendMsg(event); err != nil {
			return err
		}
	}
	return script.failure.err(call.SetTrailer)
}

func (f *failure) err(setTrailer func(metadata.MD)) error {
	if f == nil {
		return nil
	}
	if f.pushback != "" {
		setTrailer(metadata.Pairs("grpc-retry-pushback-ms", f.pushback))
	}
	if f.rawDetails != nil {
		setTrailer(metadata.Pairs("grpc-status-details-bin", *f.rawDetails))
	}
	made, err := status.New(f.code, f.message).WithDetails(f.details...)
	if err != nil {
		return err
	}
	return made.Err()
}

func answer[R any, PR interface {
	*R
	proto.Message
}](ctx context.Context, f *fake, method string, request proto.Message) (PR, error) {
	script := f.note(ctx, method, request)
	response := PR(new(R))
	if len(script.events) > 0 {
		response = script.events[0].(PR)
	}
	return response, script.failure.err(func(trailer metadata.MD) { _ = grpc.SetTrailer(ctx, trailer) })
}

func (f *fake) StreamComplete(request *pb.CompleteRequest, call grpc.ServerStreamingServer[pb.StreamCompleteResponse]) error {
	return f.play(f.note(call.Context(), "StreamComplete", request), call)
}

func (f *fake) StreamLoad(request *pb.LoadRequest, call grpc.ServerStreamingServer[pb.StreamLoadResponse]) error {
	return f.play(f.note(call.Context(), "StreamLoad", request), call)
}

func (f *fake) WatchModels(request *pb.WatchModelsRequest, call grpc.ServerStreamingServer[pb.WatchModelsResponse]) error {
	return f.play(f.note(call.Context(), "WatchModels", request), call)
}

func (f *fake) Complete(ctx context.Context, request *pb.CompleteRequest) (*pb.CompleteResponse, error) {
	return answer[pb.CompleteResponse](ctx, f, "Complete", request)
}

func (f *fake) Embed(ctx context.Context, request *pb.EmbedRequest) (*pb.EmbedResponse, error) {
	return answer[pb.EmbedResponse](ctx, f, "Embed", request)
}

func (f *fake) CountTokens(ctx context.Context, request *pb.CompleteRequest) (*pb.CountTokensResponse, error) {
	return answer[pb.CountTokensResponse](ctx, f, "CountTokens", request)
}

func (f *fake) Tokenize(ctx context.Context, request *pb.TokenizeRequest) (*pb.TokenizeResponse, error) {
	return answer[pb.TokenizeResponse](ctx, f, "Tokenize", request)
}

func (f *fake) Detokenize(ctx context.Context, request *pb.DetokenizeRequest) (*pb.DetokenizeResponse, error) {
	return answer[pb.DetokenizeResponse](ctx, f, "Detokenize", request)
}

func (f *fake) ListModels(ctx context.Context, request *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	return answer[pb.ListModelsResponse](ctx, f, "ListModels", request)
}

func (f *fake) GetModel(ctx context.Context, request *pb.GetModelRequest) (*pb.GetModelResponse, error) {
	return answer[pb.GetModelResponse](ctx, f, "GetModel", request)
}

func (f *fake) ListBackends(ctx context.Context, request *pb.ListBackendsRequest) (*pb.ListBackendsResponse, error) {
	return answer[pb.ListBackendsResponse](ctx, f, "ListBackends", request)
}

func (f *fake) Health(ctx context.Context, request *pb.HealthRequest) (*pb.HealthResponse, error) {
	return answer[pb.HealthResponse](ctx, f, "Health", request)
}

func (f *fake) Load(ctx context.Context, request *pb.LoadRequest) (*pb.LoadResponse, error) {
	return answer[pb.LoadResponse](ctx, f, "Load", request)
}

func (f *fake) Unload(ctx context.Context, request *pb.UnloadRequest) (*pb.UnloadResponse, error) {
	return answer[pb.UnloadResponse](ctx, f, "Unload", request)
}

// The events of a stream.

func started() *pb.StreamCompleteResponse {
	return &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Started{
		Started: &pb.Started{Id: "r1", Model: "demo"},
	}}
}

func text(piece string) *pb.StreamCompleteResponse {
	return &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Text{Text: &pb.TextDelta{Text: piece}}}
}

func completion() *pb.StreamCompleteResponse {
	return &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Completion{
		Completion: &pb.Completion{FinishReason: pb.FinishReason_FINISH_REASON_STOP},
	}}
}

// whole is the script of a lawful stream.
func whole(pieces ...string) script {
	events := []proto.Message{started()}
	for _, piece := range pieces {
		events = append(events, text(piece))
	}
	return script{events: append(events, completion())}
}

// refusal is a script that fails before the first event, as the contract tells it.
func refusal(code codes.Code, reason string, pushback string) script {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: "inferwire.dev"}}
	if delay, err := time.ParseDuration(pushback + "ms"); err == nil && delay >= 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	}
	return script{failure: &failure{code: code, message: "no", details: details, pushback: pushback}}
}

// wantError returns err as the client's error, and ends the test when it has not this code and reason.
func wantError(t *testing.T, err error, code codes.Code, reason string) *inferwire.Error {
	t.Helper()
	var got *inferwire.Error
	if !errors.As(err, &got) {
		t.Fatalf("got %v, want %v %s", err, code, reason)
	}
	if got.Code != code || got.Reason != reason {
		t.Fatalf("got %v %s (%v), want %v %s", got.Code, got.Reason, got, code, reason)
	}
	return got
}
