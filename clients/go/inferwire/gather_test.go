package inferwire_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
)

func reasoning(piece, signature string) *pb.StreamCompleteResponse {
	return &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Reasoning{
		Reasoning: &pb.ReasoningDelta{Text: piece, Signature: []byte(signature)},
	}}
}

func toolCall(index uint32, id, name, arguments string) *pb.StreamCompleteResponse {
	return &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_ToolCall{
		ToolCall: &pb.ToolCallDelta{Index: index, Id: id, Name: name, Arguments: arguments},
	}}
}

func given(events ...*pb.StreamCompleteResponse) iter.Seq2[*pb.StreamCompleteResponse, error] {
	return func(yield func(*pb.StreamCompleteResponse, error) bool) {
		for _, event := range events {
			if !yield(event, nil) {
				return
			}
		}
	}
}

func gather(t *testing.T, events ...*pb.StreamCompleteResponse) *pb.CompleteResponse {
	t.Helper()
	response, err := inferwire.Gather(given(append(events, completion())...))
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// brief writes the parts of a message in one line.
func brief(message *pb.Message) string {
	var parts []string
	for _, part := range message.GetParts() {
		switch part := part.GetPart().(type) {
		case *pb.Part_Text:
			parts = append(parts, "text "+part.Text)
		case *pb.Part_Reasoning:
			parts = append(parts, strings.TrimSpace(fmt.Sprintf("thought %s %s", part.Reasoning.GetText(), part.Reasoning.GetSignature())))
		case *pb.Part_ToolCall:
			parts = append(parts, fmt.Sprintf("call %s %s %s", part.ToolCall.GetId(), part.ToolCall.GetName(), part.ToolCall.GetArguments()))
		}
	}
	return strings.Join(parts, " | ")
}

// Parts as a table: the deltas of a stream, and the message they make.
func TestGatherParts(t *testing.T) {
	progress := &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Progress{Progress: &pb.Progress{}}}
	for name, test := range map[string]struct {
		events []*pb.StreamCompleteResponse
		want   string
	}{
		"runs are one part": {
			list(reasoning("h", ""), reasoning("m", ""), text("a"), text("b"), reasoning("so", ""), text("c")),
			"thought hm | text ab | thought so | text c",
		},
		"a tool call is one part, where its first delta stood": {
			list(
				toolCall(0, "c0", "add", ""), toolCall(0, "", "", `{"a"`), text("and"),
				toolCall(1, "c1", "sub", "{}"), toolCall(0, "", "", ":1}"),
			),
			`call c0 add {"a":1} | text and | call c1 sub {}`,
		},
		"a signature ends its thought": {
			list(reasoning("a", ""), reasoning("b", ""), reasoning("", "S1"), reasoning("c", "S2")),
			"thought ab S1 | thought c S2",
		},
		"a hidden thought is a part":                 {list(text("a"), reasoning("", "S")), "text a | thought  S"},
		"an empty answer has no parts":               {list(), ""},
		"an empty delta begins no part":              {list(text(""), reasoning("", "")), ""},
		"progress and unknown events leave no trace": {list(progress, text("a"), &pb.StreamCompleteResponse{}, text("b")), "text ab"},
	} {
		t.Run(name, func(t *testing.T) {
			response := gather(t, append(list(started()), test.events...)...)
			if got := brief(response.GetMessage()); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			if response.GetMessage().GetRole() != pb.Role_ROLE_ASSISTANT {
				t.Errorf("the role is %v", response.GetMessage().GetRole())
			}
			if !proto.Equal(response.GetStarted(), started().GetStarted()) || !proto.Equal(response.GetCompletion(), completion().GetCompletion()) {
				t.Errorf("got %v and %v", response.GetStarted(), response.GetCompletion())
			}
		})
	}
}

// Events that end early give no answer that could be taken for whole, and a failure is told as it is.
func TestGatherNeedsTheEnd(t *testing.T) {
	_, err := inferwire.Gather(given(started(), text("a")))
	wantError(t, err, codes.Aborted, "STREAM_TRUNCATED")
	broken := errors.New("broken")
	_, err = inferwire.Gather(func(yield func(*pb.StreamCompleteResponse, error) bool) {
		_ = yield(started(), nil) && yield(nil, broken)
	})
	if err != broken {
		t.Errorf("got %v", err)
	}
}

// Response may be asked at any time, and what it gave does not change.
func TestGathererSoFar(t *testing.T) {
	var gatherer inferwire.Gatherer
	want := func(says string) {
		t.Helper()
		if gatherer.String() != says {
			t.Errorf("it says %v, want %s", &gatherer, says)
		}
	}
	want("<Gatherer [new | parts 0 | token ids 0]>")
	gatherer.Add(started())
	gatherer.Add(text("a"))
	want("<Gatherer [started | parts 1 | token ids 0]>")
	early := gatherer.Response()
	gatherer.Add(text("b"))
	gatherer.Add(completion())
	want("<Gatherer [completed | parts 1 | token ids 0]>")
	if early.GetCompletion() != nil || brief(early.GetMessage()) != "text a" {
		t.Errorf("early it gave %v", early)
	}
	first := gatherer.Response()
	first.Message.Parts[0] = nil
	first.Completion.FinishReason = pb.FinishReason_FINISH_REASON_OTHER
	if second := gatherer.Response(); brief(second.GetMessage()) != "text ab" ||
		second.GetCompletion().GetFinishReason() != pb.FinishReason_FINISH_REASON_STOP {
		t.Errorf("after a change of its answer it gives %v", second)
	}
}

// Of each kind, the parts joined are the deltas joined: nothing is lost, doubled or put out of order. Neighbours of one
// kind are one part, unless a signature stands between them. Where a text delta ends carries no meaning.
func TestGatherConcatenates(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		var events, cut []*pb.StreamCompleteResponse
		var texts, thoughts strings.Builder
		var signatures bytes.Buffer
		var ids []uint32
		arguments := make(map[uint32]string)
		var order []uint32
		for range random.IntN(12) {
			event := randomDelta(random)
			events = append(events, event)
			switch delta := event.GetEvent().(type) {
			case *pb.StreamCompleteResponse_Text:
				texts.WriteString(delta.Text.GetText())
				ids = append(ids, delta.Text.GetTokenIds()...)
				whole := delta.Text.GetText()
				at := random.IntN(len(whole) + 1)
				rest := proto.CloneOf(event)
				rest.GetText().Text = whole[at:]
				cut = append(cut, text(whole[:at]), rest)
				continue
			case *pb.StreamCompleteResponse_Reasoning:
				thoughts.WriteString(delta.Reasoning.GetText())
				signatures.Write(delta.Reasoning.GetSignature())
				ids = append(ids, delta.Reasoning.GetTokenIds()...)
			case *pb.StreamCompleteResponse_ToolCall:
				if _, known := arguments[delta.ToolCall.GetIndex()]; !known {
					order = append(order, delta.ToolCall.GetIndex())
				}
				arguments[delta.ToolCall.GetIndex()] += delta.ToolCall.GetArguments()
				ids = append(ids, delta.ToolCall.GetTokenIds()...)
			}
			cut = append(cut, event)
		}
		end := completion()
		end.GetCompletion().TokenIds = randomIDs(random)
		response, err := inferwire.Gather(given(append(append(list(started()), events...), end)...))
		if err != nil {
			t.Fatal(err)
		}
		again, err := inferwire.Gather(given(append(append(list(started()), cut...), end)...))
		if err != nil || !proto.Equal(response, again) {
			t.Fatalf("seed %d: cut in other places it is %v, want %v", seed, again, response)
		}

		var gotTexts, gotThoughts strings.Builder
		var gotSignatures bytes.Buffer
		var gotArguments []string
		var previous *pb.Part
		for _, part := range response.GetMessage().GetParts() {
			gotTexts.WriteString(part.GetText())
			gotThoughts.WriteString(part.GetReasoning().GetText())
			gotSignatures.Write(part.GetReasoning().GetSignature())
			if part.GetToolCall() != nil {
				gotArguments = append(gotArguments, part.GetToolCall().GetArguments())
			}
			if previous.GetText() != "" && part.GetText() != "" ||
				previous.GetReasoning() != nil && part.GetReasoning() != nil && len(previous.GetReasoning().GetSignature()) == 0 {
				t.Errorf("seed %d: %v and %v should be one part", seed, previous, part)
			}
			previous = part
		}
		var wantArguments []string
		for _, index := range order {
			wantArguments = append(wantArguments, arguments[index])
		}
		var gotLogprobs []uint32
		for _, logprob := range response.GetLogprobs() {
			gotLogprobs = append(gotLogprobs, logprob.GetTokenId())
		}
		for what, pair := range map[string][2]string{
			"text":       {gotTexts.String(), texts.String()},
			"reasoning":  {gotThoughts.String(), thoughts.String()},
			"signatures": {gotSignatures.String(), signatures.String()},
			"arguments":  {fmt.Sprintf("%q", gotArguments), fmt.Sprintf("%q", wantArguments)},
			"token ids":  {fmt.Sprint(response.GetTokenIds()), fmt.Sprint(append(ids, end.GetCompletion().GetTokenIds()...))},
			"logprobs":   {fmt.Sprint(gotLogprobs), fmt.Sprint(ids)},
		} {
			if pair[0] != pair[1] {
				t.Errorf("seed %d: %s is %s, want %s", seed, what, pair[0], pair[1])
			}
		}
	}
}

func randomDelta(random *rand.Rand) *pb.StreamCompleteResponse {
	piece := strings.Repeat(string(rune('a'+random.IntN(3))), random.IntN(4))
	ids := randomIDs(random)
	var logprobs []*pb.TokenLogprob
	for _, id := range ids {
		logprobs = append(logprobs, &pb.TokenLogprob{TokenId: id, Logprob: -1})
	}
	switch random.IntN(3) {
	case 0:
		event := text(piece)
		event.GetText().TokenIds, event.GetText().Logprobs = ids, logprobs
		return event
	case 1:
		event := reasoning(piece, []string{"", "", "sig"}[random.IntN(3)])
		event.GetReasoning().TokenIds, event.GetReasoning().Logprobs = ids, logprobs
		return event
	default:
		event := toolCall(random.Uint32N(3), "", "", piece)
		event.GetToolCall().TokenIds, event.GetToolCall().Logprobs = ids, logprobs
		return event
	}
}

func randomIDs(random *rand.Rand) []uint32 {
	var ids []uint32
	for range random.IntN(4) {
		ids = append(ids, random.Uint32())
	}
	return ids
}

func list(events ...*pb.StreamCompleteResponse) []*pb.StreamCompleteResponse {
	return events
}
