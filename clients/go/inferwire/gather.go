package inferwire

import (
	"fmt"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "inferwire.dev/go/inferwire/v1"
)

// This file owns what "the concatenation of the deltas" means.

// Gather reads a stream to its end and returns the answer that [Client.Complete] would have given. Events that end without
// a completion are the failure STREAM_TRUNCATED: no answer comes that could be taken for whole.
func Gather(events iter.Seq2[*pb.StreamCompleteResponse, error]) (*pb.CompleteResponse, error) {
	var gatherer Gatherer
	for event, err := range events {
		if err != nil {
			return nil, err
		}
		gatherer.Add(event)
	}
	if gatherer.completion == nil {
		return nil, streamTruncated()
	}
	return gatherer.Response(), nil
}

// A Gatherer takes the events of one stream in order and gives the answer that [Client.Complete] would have given. The zero
// value is ready for the first event.
//
// Parts stand in the order of their first delta:
//
//   - text extends the last part when that is text, else it begins one;
//   - reasoning likewise, but a signature ends its thought: what comes after it begins a new part;
//   - a tool call is one part wherever its deltas stand, told apart by its index.
//
// Token ids and logprobs concatenate over all events, those of the completion included. Events of an unknown kind and
// progress leave no trace.
type Gatherer struct {
	started    *pb.Started
	completion *pb.Completion
	parts      []part
	calls      map[uint32]*call
	tokenIDs   []uint32
	logprobs   []*pb.TokenLogprob
}

// Add takes the next event, which must not change afterwards.
func (g *Gatherer) Add(event *pb.StreamCompleteResponse) {
	switch event := event.GetEvent().(type) {
	case *pb.StreamCompleteResponse_Started:
		g.started = event.Started
	case *pb.StreamCompleteResponse_Text:
		g.addText(event.Text)
	case *pb.StreamCompleteResponse_Reasoning:
		g.addReasoning(event.Reasoning)
	case *pb.StreamCompleteResponse_ToolCall:
		g.addToolCall(event.ToolCall)
	case *pb.StreamCompleteResponse_Completion:
		g.completion = event.Completion
		g.addTokens(event.Completion)
	}
}

// Response returns the answer so far, as a new message. Its completion is nil until that event came.
func (g *Gatherer) Response() *pb.CompleteResponse {
	message := &pb.Message{Role: pb.Role_ROLE_ASSISTANT}
	for _, part := range g.parts {
		message.Parts = append(message.Parts, part.build())
	}
	return proto.CloneOf(&pb.CompleteResponse{
		Started:    g.started,
		Message:    message,
		TokenIds:   g.tokenIDs,
		Logprobs:   g.logprobs,
		Completion: g.completion,
	})
}

// String says how far the answer is.
func (g *Gatherer) String() string {
	state := "new"
	switch {
	case g.completion != nil:
		state = "completed"
	case g.started != nil:
		state = "started"
	}
	return fmt.Sprintf("<Gatherer [%s | parts %d | token ids %d]>", state, len(g.parts), len(g.tokenIDs))
}

func (g *Gatherer) addText(delta *pb.TextDelta) {
	g.addTokens(delta)
	if delta.GetText() == "" {
		return
	}
	last, is := g.last().(*text)
	if !is {
		last = &text{}
		g.parts = append(g.parts, last)
	}
	last.pieces.WriteString(delta.GetText())
}

func (g *Gatherer) addReasoning(delta *pb.ReasoningDelta) {
	g.addTokens(delta)
	if delta.GetText() == "" && len(delta.GetSignature()) == 0 {
		return
	}
	last, is := g.last().(*thought)
	if !is || len(last.signature) != 0 {
		last = &thought{}
		g.parts = append(g.parts, last)
	}
	last.pieces.WriteString(delta.GetText())
	last.signature = delta.GetSignature()
}

func (g *Gatherer) addToolCall(delta *pb.ToolCallDelta) {
	g.addTokens(delta)
	one := g.calls[delta.GetIndex()]
	if one == nil {
		one = &call{}
		if g.calls == nil {
			g.calls = make(map[uint32]*call)
		}
		g.calls[delta.GetIndex()] = one
		g.parts = append(g.parts, one)
	}
	if one.id == "" {
		one.id = delta.GetId()
	}
	if one.name == "" {
		one.name = delta.GetName()
	}
	one.pieces.WriteString(delta.GetArguments())
	one.signature = append(one.signature, delta.GetSignature()...)
}

func (g *Gatherer) addTokens(delta interface {
	GetTokenIds() []uint32
	GetLogprobs() []*pb.TokenLogprob
}) {
	g.tokenIDs = append(g.tokenIDs, delta.GetTokenIds()...)
	g.logprobs = append(g.logprobs, delta.GetLogprobs()...)
}

func (g *Gatherer) last() part {
	if len(g.parts) == 0 {
		return nil
	}
	return g.parts[len(g.parts)-1]
}

// A part is a piece of the message while it grows.
type part interface {
	build() *pb.Part
}

type text struct {
	pieces strings.Builder
}

func (t *text) build() *pb.Part {
	return &pb.Part{Part: &pb.Part_Text{Text: t.pieces.String()}}
}

type thought struct {
	pieces    strings.Builder
	signature []byte
}

func (t *thought) build() *pb.Part {
	return &pb.Part{Part: &pb.Part_Reasoning{
		Reasoning: &pb.Reasoning{Text: t.pieces.String(), Signature: t.signature},
	}}
}

type call struct {
	id, name  string
	pieces    strings.Builder
	signature []byte
}

func (c *call) build() *pb.Part {
	return &pb.Part{Part: &pb.Part_ToolCall{
		ToolCall: &pb.ToolCall{Id: c.id, Name: c.name, Arguments: c.pieces.String(), Signature: c.signature},
	}}
}
