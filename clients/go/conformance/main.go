// Command conformance makes the calls that lines of JSON on its input describe, and answers each with a line of JSON. It
// uses the client as any program would. The clients of other languages have the same program, so one suite asks them all.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
)

func main() {
	if err := answerAll(os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// answerAll answers line by line, in order, until the input ends.
func answerAll(input io.Reader, output io.Writer) error {
	p := program{clients: make(map[string]*inferwire.Client)}
	defer p.close()
	lines, answers := bufio.NewReader(input), json.NewEncoder(output)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if err := answers.Encode(p.answer(line)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type line struct {
	ID      json.RawMessage `json:"id"`
	Connect json.RawMessage `json:"connect"`
	Call    call            `json:"call"`
}

type connection struct {
	Target           string          `json:"target"`
	TLS              json.RawMessage `json:"tls"`
	Token            string          `json:"token"`
	DefaultTimeoutMS int64           `json:"default_timeout_ms"`
	Retry            *bool           `json:"retry"`
	Balance          bool            `json:"balance"`
}

type security struct {
	CA         string `json:"ca"`
	Cert       string `json:"cert"`
	Key        string `json:"key"`
	ServerName string `json:"server_name"`
}

type call struct {
	Method      string            `json:"method"`
	Request     []byte            `json:"request"`
	TimeoutMS   *int64            `json:"timeout_ms"`
	Metadata    map[string]string `json:"metadata"`
	CancelAfter *int              `json:"cancel_after"`
}

type answer struct {
	ID        json.RawMessage `json:"id"`
	Messages  [][]byte        `json:"messages"`
	Error     *failure        `json:"error"`
	LeftEarly bool            `json:"left_early"`
}

type fault struct {
	ID    json.RawMessage `json:"id"`
	Fault string          `json:"fault"`
}

type failure struct {
	Code         string            `json:"code"`
	Reason       string            `json:"reason"`
	Message      string            `json:"message"`
	Metadata     map[string]string `json:"metadata"`
	RetryDelayMS *float64          `json:"retry_delay_ms"`
	Violations   []violation       `json:"violations"`
	Resource     string            `json:"resource"`
}

type violation struct {
	Field       string `json:"field"`
	Description string `json:"description"`
}

// program holds one client per way to connect.
type program struct {
	clients map[string]*inferwire.Client
}

func (p *program) close() {
	for _, client := range p.clients {
		_ = client.Close()
	}
}

// answer returns an answer, or a fault for a line that cannot be read.
func (p *program) answer(text []byte) any {
	var asked line
	if err := json.Unmarshal(text, &asked); err != nil {
		return fault{asked.ID, err.Error()}
	}
	client, err := p.client(asked.Connect)
	if err != nil {
		return fault{asked.ID, err.Error()}
	}
	messages, err := asked.Call.begin(client)
	if err != nil {
		return fault{asked.ID, err.Error()}
	}
	made, err := asked.Call.read(messages)
	if err != nil {
		return fault{asked.ID, err.Error()}
	}
	made.ID = asked.ID
	return made
}

// client returns the one client of a way to connect.
func (p *program) client(way json.RawMessage) (*inferwire.Client, error) {
	if client := p.clients[string(way)]; client != nil {
		return client, nil
	}
	var asked connection
	if err := json.Unmarshal(way, &asked); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	options := &inferwire.Options{
		Token:          asked.Token,
		DefaultTimeout: time.Duration(asked.DefaultTimeoutMS) * time.Millisecond,
		DisableRetry:   asked.Retry != nil && !*asked.Retry,
		Balance:        asked.Balance,
	}
	switch string(asked.TLS) {
	case "", "null":
	case "false":
		options.PlainText = true
	case "true":
		options.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	default:
		var files security
		if err := json.Unmarshal(asked.TLS, &files); err != nil {
			return nil, fmt.Errorf("connect.tls: %w", err)
		}
		config, err := inferwire.TLSFromFiles(files.CA, files.Cert, files.Key)
		if err != nil {
			return nil, err
		}
		config.ServerName = files.ServerName
		options.TLS = config
	}
	client, err := inferwire.Connect(asked.Target, options)
	if err != nil {
		return nil, err
	}
	p.clients[string(way)] = client
	return client, nil
}

// begin returns what a call gives, a unary call as a stream of one. The call is made when that is read.
func (c *call) begin(client *inferwire.Client) (messages, error) {
	health := standardHealth{grpc_health_v1.NewHealthClient(client.Conn())}
	switch c.Method {
	case "Complete":
		return unary(c, client.Complete)
	case "StreamComplete":
		return stream(c, client.Stream)
	case "GatherStream":
		gathered := func(ctx context.Context, request *pb.CompleteRequest, options ...grpc.CallOption) (
			*pb.CompleteResponse, error,
		) {
			return inferwire.Gather(client.Stream(ctx, request, options...))
		}
		return unary(c, gathered)
	case "Load":
		return unary(c, client.Load)
	case "StreamLoad":
		return stream(c, client.StreamLoad)
	case "Unload":
		return unary(c, client.Unload)
	case "ListModels":
		return unary(c, client.ListModels)
	case "GetModel":
		return unary(c, client.GetModel)
	case "WatchModels":
		return stream(c, client.WatchModels)
	case "ListBackends":
		return unary(c, client.ListBackends)
	case "Health":
		return unary(c, client.Health)
	case "Embed":
		return unary(c, client.Embed)
	case "CountTokens":
		return unary(c, client.CountTokens)
	case "Tokenize":
		return unary(c, client.Tokenize)
	case "Detokenize":
		return unary(c, client.Detokenize)
	case "HealthCheck":
		return unary(c, health.Check)
	case "HealthWatch":
		return stream(c, health.watch)
	default:
		return nil, fmt.Errorf("there is no method %q", c.Method)
	}
}

// read reads a call to its end, or leaves it where the line says so.
func (c *call) read(given messages) (*answer, error) {
	ctx := context.Background()
	if c.TimeoutMS != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*c.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	for key, value := range c.Metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	made := &answer{Messages: [][]byte{}}
	if c.CancelAfter != nil && *c.CancelAfter <= 0 {
		made.LeftEarly = true
		return made, nil
	}
	for message, err := range given(ctx) {
		if err != nil {
			made.Error = failureOf(err)
			break
		}
		data, err := proto.Marshal(message)
		if err != nil {
			return nil, err
		}
		made.Messages = append(made.Messages, data)
		if c.CancelAfter != nil && len(made.Messages) == *c.CancelAfter {
			made.LeftEarly = true
			break
		}
	}
	return made, nil
}

// messages makes a call and gives what it gives.
type messages func(context.Context) iter.Seq2[proto.Message, error]

// of is a message of the type M, by its pointer.
type of[M any] interface {
	*M
	proto.Message
}

func unary[Q, R any, PQ of[Q], PR of[R]](
	c *call, method func(context.Context, PQ, ...grpc.CallOption) (PR, error),
) (messages, error) {
	request, err := requestOf[Q, PQ](c)
	return func(ctx context.Context) iter.Seq2[proto.Message, error] {
		return func(yield func(proto.Message, error) bool) {
			response, err := method(ctx, request)
			yield(response, err)
		}
	}, err
}

func stream[Q, E any, PQ of[Q], PE of[E]](
	c *call, method func(context.Context, PQ, ...grpc.CallOption) iter.Seq2[PE, error],
) (messages, error) {
	request, err := requestOf[Q, PQ](c)
	return func(ctx context.Context) iter.Seq2[proto.Message, error] {
		return func(yield func(proto.Message, error) bool) {
			for event, err := range method(ctx, request) {
				if !yield(event, err) {
					return
				}
			}
		}
	}, err
}

func requestOf[Q any, PQ of[Q]](c *call) (PQ, error) {
	request := PQ(new(Q))
	if err := proto.Unmarshal(c.Request, request); err != nil {
		return nil, fmt.Errorf("call.request: %w", err)
	}
	return request, nil
}

// standardHealth is grpc.health.v1 on the client's connection.
type standardHealth struct {
	grpc_health_v1.HealthClient
}

func (h standardHealth) watch(
	ctx context.Context, request *grpc_health_v1.HealthCheckRequest, options ...grpc.CallOption,
) iter.Seq2[*grpc_health_v1.HealthCheckResponse, error] {
	return func(yield func(*grpc_health_v1.HealthCheckResponse, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		call, err := h.Watch(ctx, request, options...)
		for err == nil {
			var message *grpc_health_v1.HealthCheckResponse
			if message, err = call.Recv(); err == nil && !yield(message, nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(nil, err)
		}
	}
}

func failureOf(err error) *failure {
	var given *inferwire.Error
	if !errors.As(err, &given) {
		return &failure{Code: "UNKNOWN", Message: "not an error of the client: " + err.Error()}
	}
	made := &failure{
		Code:       code.Code(given.Code).String(),
		Reason:     given.Reason,
		Message:    given.Message,
		Metadata:   given.Metadata,
		Violations: []violation{},
		Resource:   given.Resource,
	}
	if made.Metadata == nil {
		made.Metadata = map[string]string{}
	}
	if given.RetryDelay != nil {
		delay := float64(*given.RetryDelay) / float64(time.Millisecond)
		made.RetryDelayMS = &delay
	}
	for _, one := range given.Violations {
		made.Violations = append(made.Violations, violation(one))
	}
	return made
}
