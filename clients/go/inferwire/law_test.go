package inferwire

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "inferwire.dev/go/inferwire/v1"
)

// This file tests decisions that need no server: the law of a stream, by messages made by hand, and where plain text goes.

var (
	started    = &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Started{Started: &pb.Started{Id: "r1"}}}
	completion = &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Completion{
		Completion: &pb.Completion{FinishReason: pb.FinishReason_FINISH_REASON_STOP},
	}}
)

func textEvent(piece string) *pb.StreamCompleteResponse {
	return &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Text{Text: &pb.TextDelta{Text: piece}}}
}

// unknownEvent has field 127, which is in no version of the contract: what an older client sees of a newer server.
func unknownEvent(t *testing.T) *pb.StreamCompleteResponse {
	t.Helper()
	var event pb.StreamCompleteResponse
	if err := proto.Unmarshal([]byte("\xfa\x07\x03new"), &event); err != nil {
		t.Fatal(err)
	}
	return &event
}

// given is a stream that gives these events and then ends with the failure, or with OK where that is nil.
func given[E any](failure error, events ...*E) iter.Seq2[*E, error] {
	return func(yield func(*E, error) bool) {
		for _, event := range events {
			if !yield(event, nil) {
				return
			}
		}
		if failure != nil {
			yield(nil, failure)
		}
	}
}

func read[E any](events iter.Seq2[*E, error]) (seen []*E, failure error) {
	for event, err := range events {
		if err != nil {
			return seen, err
		}
		seen = append(seen, event)
	}
	return seen, nil
}

// The law as a table: what comes on the wire, and what of it the caller sees.
func TestWhole(t *testing.T) {
	unknown := unknownEvent(t)
	broken := errors.New("broken")
	a := textEvent("a")
	for name, test := range map[string]struct {
		events  []*pb.StreamCompleteResponse
		status  error
		want    []*pb.StreamCompleteResponse
		failure error
	}{
		"a lawful stream passes":                    {events: list(started, a, completion), want: list(started, a, completion)},
		"unknown arms are skipped everywhere":       {events: list(unknown, started, unknown, a, completion, unknown), want: list(started, a, completion)},
		"OK without a completion is truncated":      {events: list(started, a), want: list(started, a), failure: streamTruncated()},
		"OK without anything is truncated":          {failure: streamTruncated()},
		"a failure after a completion is a failure": {events: list(started, a, completion), status: broken, want: list(started, a), failure: broken},
		"a failure before anything is a failure":    {status: broken, failure: broken},
	} {
		t.Run(name, func(t *testing.T) {
			seen, failure := read(whole(given(test.status, test.events...), kindOfAnswer))
			if !slices.Equal(seen, test.want) {
				t.Errorf("saw %v, want %v", seen, test.want)
			}
			if test.failure == broken && failure != broken || (failure == nil) != (test.failure == nil) {
				t.Fatalf("failed with %v, want %v", failure, test.failure)
			}
			var truncated *Error
			if errors.As(test.failure, &truncated) {
				var got *Error
				if !errors.As(failure, &got) || got.Code != codes.Aborted ||
					got.KnownReason() != pb.ErrorReason_ERROR_REASON_STREAM_TRUNCATED {
					t.Errorf("failed with %v, want STREAM_TRUNCATED", failure)
				}
			}
		})
	}
}

// The way of a load has the same law: exactly one `loaded`, last.
func TestWholeLoad(t *testing.T) {
	progress := &pb.StreamLoadResponse{Event: &pb.StreamLoadResponse_Progress{Progress: &pb.LoadProgress{Fraction: 0.5}}}
	loaded := &pb.StreamLoadResponse{Event: &pb.StreamLoadResponse_Loaded{Loaded: &pb.LoadResponse{}}}
	unknown := &pb.StreamLoadResponse{}
	if seen, err := read(whole(given(nil, progress, unknown, loaded), kindOfLoad)); err != nil || len(seen) != 2 {
		t.Errorf("saw %v and %v, want progress and loaded", seen, err)
	}
	if seen, err := read(whole(given(nil, progress), kindOfLoad)); err == nil || len(seen) != 1 {
		t.Errorf("saw %v and %v, want progress and STREAM_TRUNCATED", seen, err)
	}
}

// Who leaves a stream gets nothing more of it, and neither does the stream read on.
func TestLeavingStopsTheReading(t *testing.T) {
	num := 0
	counted := func(yield func(*pb.StreamCompleteResponse, error) bool) {
		for event, err := range given(nil, started, textEvent("a"), textEvent("b"), completion) {
			num++
			if !yield(event, err) {
				return
			}
		}
	}
	for range Text(whole(counted, kindOfAnswer)) {
		break
	}
	if num != 2 {
		t.Errorf("%d events were read, want 2: started and the first text", num)
	}
}

// The text of an answer leaves out whatever else comes, and tells a failure.
func TestText(t *testing.T) {
	thought := &pb.StreamCompleteResponse{Event: &pb.StreamCompleteResponse_Reasoning{
		Reasoning: &pb.ReasoningDelta{Text: "hm"},
	}}
	broken := errors.New("broken")
	var pieces []string
	var failure error
	for piece, err := range Text(given(broken, started, thought, textEvent("a"), unknownEvent(t), textEvent("b"))) {
		if err != nil {
			failure = err
			break
		}
		pieces = append(pieces, piece)
	}
	if !slices.Equal(pieces, []string{"a", "b"}) || failure != broken {
		t.Errorf("got %q and %v, want a, b and the failure", pieces, failure)
	}
}

// Without a word about TLS, only a target on this very machine is called in plain text.
func TestPlainTextStaysOnThisMachine(t *testing.T) {
	for target, local := range map[string]bool{
		"127.0.0.1:50051":                       true,
		"localhost:50051":                       true,
		"localhost":                             true,
		"[::1]:50051":                           true,
		"::1":                                   true,
		"dns:///localhost:50051":                true,
		"dns:localhost:50051":                   true,
		"passthrough:///127.0.0.1:50051":        true,
		"ipv4:127.0.0.1:50051":                  true,
		"ipv4:127.0.0.1:50051,127.0.0.1:50052":  true,
		"ipv6:[::1]:50051,[::1]:50052":          true,
		"unix:/run/inferwire.sock":              true,
		"unix-abstract:inferwire":               true,
		"10.0.0.1:50051":                        false,
		"inferwire.example:443":                 false,
		"localhost.example:443":                 false,
		"dns:///inferwire.example:443":          false,
		"dns://127.0.0.1/inferwire.example:443": false,
		"[2001:db8::1]:443":                     false,
		"ipv4:127.0.0.1:50051,10.0.0.1:50051":   false,
	} {
		client, err := Connect(target, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		way := "TLS"
		if local {
			way = "plain text"
		}
		if want := "<Client [" + target + " | " + way + " | no token]>"; client.String() != want {
			t.Errorf("made %v, want %s", client, want)
		}
	}
}

// Plain text to another machine can be said, at odds with TLS it cannot; the key is never shown.
func TestOptions(t *testing.T) {
	client, err := Connect("10.0.0.1:50051", &Options{PlainText: true, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if want := "<Client [10.0.0.1:50051 | plain text | token]>"; client.String() != want {
		t.Errorf("made %v, want %s", client, want)
	}
	config, err := TLSFromFiles("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Connect("10.0.0.1:50051", &Options{PlainText: true, TLS: config}); err == nil {
		t.Error("PlainText and TLS together were taken")
	}
}

// A call without a deadline of its own gets the default, which may be none.
func TestDefaultTimeout(t *testing.T) {
	for name, test := range map[string]struct {
		options Options
		limited bool
	}{
		"default":   {Options{}, true},
		"none":      {Options{DefaultTimeout: -1}, false},
		"the other": {Options{DefaultTimeout: defaultTimeout * 2}, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := withTimeout(context.Background(), test.options.timeout())
			defer cancel()
			if _, limited := ctx.Deadline(); limited != test.limited {
				t.Errorf("limited %t, want %t", limited, test.limited)
			}
		})
	}
}

func list(events ...*pb.StreamCompleteResponse) []*pb.StreamCompleteResponse {
	return events
}
