package inferwire

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	pb "inferwire.dev/go/inferwire/v1"
)

// This file owns the law of a stream as a client reads it. [whole] is the law, without any I/O.

// Text gives the text of an answer as it comes, and nothing else of it. A failure is the last pair.
func Text(events iter.Seq2[*pb.StreamCompleteResponse, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for event, err := range events {
			if err != nil {
				yield("", err)
				return
			}
			if delta, is := event.GetEvent().(*pb.StreamCompleteResponse_Text); is && !yield(delta.Text.GetText(), nil) {
				return
			}
		}
	}
}

// messages makes a call whenever it is ranged over, and gives what the call gives. To leave the loop, by break, return or
// panic, ends the call.
func messages[Q, E any](
	ctx context.Context,
	timeout time.Duration,
	method func(context.Context, *Q, ...grpc.CallOption) (grpc.ServerStreamingClient[E], error),
	request *Q,
	options []grpc.CallOption,
) iter.Seq2[*E, error] {
	return func(yield func(*E, error) bool) {
		ctx, cancel := withTimeout(ctx, timeout)
		defer cancel()
		call, err := method(ctx, request, options...)
		for err == nil {
			var message *E
			if message, err = call.Recv(); err == nil && !yield(message, nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(nil, err)
		}
	}
}

// kind is what the law makes of an event.
type kind int

const (
	// kindUnknown is an arm that this version does not know: it is skipped.
	kindUnknown kind = iota
	// kindPassing goes to the caller at once.
	kindPassing
	// kindTerminal must come last. It is held back until the status is OK, so whoever has it knows that all came.
	kindTerminal
)

func kindOfAnswer(event *pb.StreamCompleteResponse) kind {
	switch event.GetEvent().(type) {
	case nil:
		return kindUnknown
	case *pb.StreamCompleteResponse_Completion:
		return kindTerminal
	default:
		return kindPassing
	}
}

func kindOfLoad(event *pb.StreamLoadResponse) kind {
	switch event.GetEvent().(type) {
	case nil:
		return kindUnknown
	case *pb.StreamLoadResponse_Loaded:
		return kindTerminal
	default:
		return kindPassing
	}
}

// whole gives a stream as its caller may see it. The end of events is the status OK.
func whole[E any](events iter.Seq2[*E, error], kindOf func(*E) kind) iter.Seq2[*E, error] {
	return func(yield func(*E, error) bool) {
		var last *E
		for event, err := range events {
			if err != nil {
				yield(nil, err)
				return
			}
			switch kindOf(event) {
			case kindTerminal:
				last = event
			case kindPassing:
				if !yield(event, nil) {
					return
				}
			case kindUnknown:
			}
		}
		if last == nil {
			yield(nil, streamTruncated())
			return
		}
		yield(last, nil)
	}
}
