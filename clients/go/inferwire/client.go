// Package inferwire is a client of inferwire, a gRPC service for LLM inference.
//
// [Connect] makes a [Client] with sane defaults, [Client.Stream] gives an answer as it is made, [Gather] turns that into
// the whole answer, and every failure is an [*Error]. Requests and answers are the messages of the contract, package
// inferwire.dev/go/inferwire/v1.
package inferwire

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/grpc"

	pb "inferwire.dev/go/inferwire/v1"
)

// Version is the version of this client.
const Version = "0.1.0"

// A Client is a connection to a server. Goroutines may share it; it connects at the first call and again after a loss.
//
// Every method fails with an [*Error], and takes nil for an empty request. A call whose context has no deadline gets
// [Options.DefaultTimeout]. The caller's own request id, which the server tells back, is metadata:
//
//	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", id)
type Client struct {
	about     string
	timeout   time.Duration
	conn      *grpc.ClientConn
	inference pb.InferenceServiceClient
	models    pb.ModelServiceClient
}

// Connect returns a client of the server at target, such as "127.0.0.1:50051" or "dns:///inferwire.example:443". It does
// not wait for the server: where none is, the first call says so. Nil options are the defaults.
func Connect(target string, options *Options) (*Client, error) {
	if options == nil {
		options = &Options{}
	}
	way, err := options.credentials(target)
	if err != nil {
		return nil, err
	}
	c := &Client{about: options.describe(target, way), timeout: options.timeout()}
	dial := append(
		options.dialOptions(way),
		grpc.WithChainUnaryInterceptor(c.interceptUnary),
		grpc.WithChainStreamInterceptor(interceptStream),
	)
	c.conn, err = grpc.NewClient(target, append(dial, options.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("inferwire: the target %q cannot be used: %w", target, err)
	}
	c.inference = pb.NewInferenceServiceClient(c.conn)
	c.models = pb.NewModelServiceClient(c.conn)
	return c, nil
}

// Close closes the connection; calls that still run are cancelled.
func (c *Client) Close() error {
	return c.conn.Close()
}

// Conn returns the connection, for stubs of other services such as grpc.health.v1. Their calls carry the token and fail
// with an [*Error] as well; a unary one has the default deadline, a stream has none.
func (c *Client) Conn() *grpc.ClientConn {
	return c.conn
}

// String says where the client calls and how, without the token.
func (c *Client) String() string {
	return c.about
}

// Complete returns the whole answer.
func (c *Client) Complete(
	ctx context.Context, request *pb.CompleteRequest, options ...grpc.CallOption,
) (*pb.CompleteResponse, error) {
	return c.inference.Complete(ctx, request, options...)
}

// Stream gives the answer as it is made: `started`, deltas, and `completion` last. To leave the loop early cancels the
// generation, and so does cancelling the context.
//
// The completion comes only when the status is OK, so it proves that the answer is whole; an answer that ends without one
// is the failure STREAM_TRUNCATED. A failure is the last pair of the loop. Events that this version does not know are
// skipped. Each loop over what Stream returns is a call of its own.
func (c *Client) Stream(
	ctx context.Context, request *pb.CompleteRequest, options ...grpc.CallOption,
) iter.Seq2[*pb.StreamCompleteResponse, error] {
	events := messages(ctx, c.timeout, c.inference.StreamComplete, request, options)
	return whole(events, kindOfAnswer)
}

// Embed returns one vector per text, in order.
func (c *Client) Embed(
	ctx context.Context, request *pb.EmbedRequest, options ...grpc.CallOption,
) (*pb.EmbedResponse, error) {
	return c.inference.Embed(ctx, request, options...)
}

// CountTokens returns how many tokens the request would put before the model; nothing is generated.
func (c *Client) CountTokens(
	ctx context.Context, request *pb.CompleteRequest, options ...grpc.CallOption,
) (*pb.CountTokensResponse, error) {
	return c.inference.CountTokens(ctx, request, options...)
}

// Tokenize returns the tokens of a text with the bytes of each.
func (c *Client) Tokenize(
	ctx context.Context, request *pb.TokenizeRequest, options ...grpc.CallOption,
) (*pb.TokenizeResponse, error) {
	return c.inference.Tokenize(ctx, request, options...)
}

// Detokenize returns the bytes that the tokens stand for; they need not be valid UTF-8.
func (c *Client) Detokenize(
	ctx context.Context, request *pb.DetokenizeRequest, options ...grpc.CallOption,
) (*pb.DetokenizeResponse, error) {
	return c.inference.Detokenize(ctx, request, options...)
}

// ListModels returns every model in any state, and the default model's name.
func (c *Client) ListModels(
	ctx context.Context, request *pb.ListModelsRequest, options ...grpc.CallOption,
) (*pb.ListModelsResponse, error) {
	return c.inference.ListModels(ctx, request, options...)
}

// GetModel returns one model.
func (c *Client) GetModel(
	ctx context.Context, request *pb.GetModelRequest, options ...grpc.CallOption,
) (*pb.GetModelResponse, error) {
	return c.inference.GetModel(ctx, request, options...)
}

// WatchModels gives the list of models now and again after every change. It ends only by a failure, which is the last
// pair, or by the caller, and has no deadline of its own.
func (c *Client) WatchModels(
	ctx context.Context, request *pb.WatchModelsRequest, options ...grpc.CallOption,
) iter.Seq2[*pb.WatchModelsResponse, error] {
	return messages(ctx, noTimeout, c.inference.WatchModels, request, options)
}

// ListBackends returns the backends with their capabilities, models and health, ordered by id.
func (c *Client) ListBackends(
	ctx context.Context, request *pb.ListBackendsRequest, options ...grpc.CallOption,
) (*pb.ListBackendsResponse, error) {
	return c.inference.ListBackends(ctx, request, options...)
}

// Health returns what the server is and how it is.
func (c *Client) Health(
	ctx context.Context, request *pb.HealthRequest, options ...grpc.CallOption,
) (*pb.HealthResponse, error) {
	return c.inference.Health(ctx, request, options...)
}

// Load loads a model and returns when it is ready. It has no deadline of its own. To stop waiting does not stop the
// load: [Client.Unload] does.
func (c *Client) Load(
	ctx context.Context, request *pb.LoadRequest, options ...grpc.CallOption,
) (*pb.LoadResponse, error) {
	return c.models.Load(ctx, request, options...)
}

// StreamLoad gives the way of a load: any number of `progress`, then exactly one `loaded`. It is as [Client.Load] and
// read as [Client.Stream].
func (c *Client) StreamLoad(
	ctx context.Context, request *pb.LoadRequest, options ...grpc.CallOption,
) iter.Seq2[*pb.StreamLoadResponse, error] {
	events := messages(ctx, noTimeout, c.models.StreamLoad, request, options)
	return whole(events, kindOfLoad)
}

// Unload unloads a model; running requests may go on for the request's drain timeout.
func (c *Client) Unload(
	ctx context.Context, request *pb.UnloadRequest, options ...grpc.CallOption,
) (*pb.UnloadResponse, error) {
	return c.models.Unload(ctx, request, options...)
}

// withTimeout returns a call's context: the caller's deadline counts, else the timeout.
func withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if _, said := ctx.Deadline(); said || timeout == noTimeout {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}

// interceptUnary gives a unary call its deadline and its error.
func (c *Client) interceptUnary(
	ctx context.Context, method string, request, response any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
	options ...grpc.CallOption,
) error {
	if method != pb.ModelService_Load_FullMethodName {
		var cancel context.CancelFunc
		ctx, cancel = withTimeout(ctx, c.timeout)
		defer cancel()
	}
	return errorOf(invoke(ctx, method, request, response, conn, options...))
}

// interceptStream gives a stream its error.
func interceptStream(
	ctx context.Context, description *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer,
	options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	call, err := open(ctx, description, conn, method, options...)
	if err != nil {
		return nil, errorOf(err)
	}
	return streamWithErrors{call}, nil
}

type streamWithErrors struct {
	grpc.ClientStream
}

func (s streamWithErrors) SendMsg(message any) error {
	return errorOf(s.ClientStream.SendMsg(message))
}

func (s streamWithErrors) RecvMsg(message any) error {
	return errorOf(s.ClientStream.RecvMsg(message))
}
