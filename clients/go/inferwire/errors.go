package inferwire

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	pb "inferwire.dev/go/inferwire/v1"
)

const domain = "inferwire.dev"

// An Error says that a call failed, and why. Get it with [errors.As]:
//
//	var failure *inferwire.Error
//	if errors.As(err, &failure) && failure.KnownReason() == pb.ErrorReason_ERROR_REASON_MODEL_NOT_FOUND {
//
// Package status of gRPC reads it too, and so does [errors.Is] for [context.Canceled] and [context.DeadlineExceeded].
type Error struct {
	// Code is for who retries.
	Code codes.Code
	// Reason is for who branches: the name of an ErrorReason without its prefix, such as "QUEUE_FULL", also one that
	// this version does not know. Empty when the failure is not the service's own: no server there, a proxy's answer,
	// the transport.
	Reason string
	// Message is for people.
	Message string
	// Metadata is what the reason documents, such as {"model": "demo", "queueCapacity": "64"}.
	Metadata map[string]string
	// RetryDelay is after how long the server wants to be asked again; nil when it does not say.
	RetryDelay *time.Duration
	// Violations are the fields that the server refuses.
	Violations []Violation
	// Resource is the name of the thing that was not found, such as a model's; empty when the server names none.
	Resource string

	status *status.Status
}

// A Violation is a field of the request that the server refuses, and why.
type Violation struct {
	// Field is its path, such as "sampling.top_p".
	Field string
	// Description says what is wrong with it.
	Description string
}

// Error says the reason, or the code where there is none, the message and the violations.
func (e *Error) Error() string {
	var text strings.Builder
	if e.Reason != "" {
		text.WriteString(e.Reason)
	} else {
		text.WriteString(code.Code(e.Code).String())
	}
	text.WriteString(": " + e.Message)
	for _, violation := range e.Violations {
		text.WriteString("; " + violation.Field + ": " + violation.Description)
	}
	return text.String()
}

// KnownReason returns the reason as the contract's enum; ERROR_REASON_UNSPECIFIED when there is none or this version does
// not know it.
func (e *Error) KnownReason() pb.ErrorReason {
	return pb.ErrorReason(pb.ErrorReason_value["ERROR_REASON_"+e.Reason])
}

// GRPCStatus returns the status that the call ended with, for package status of gRPC.
func (e *Error) GRPCStatus() *status.Status {
	return e.status
}

// Is returns whether the call ended as a context with the error target ends.
func (e *Error) Is(target error) bool {
	return e.Code == codes.Canceled && target == context.Canceled ||
		e.Code == codes.DeadlineExceeded && target == context.DeadlineExceeded
}

// errorOf returns the failure of a call as an [*Error]; nil and the end of a stream stay what they are.
func errorOf(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	// gRPC may put words of its own around a status, such as how often it tried; the server's message is inside.
	var inside interface {
		error
		GRPCStatus() *status.Status
	}
	if errors.As(err, &inside) {
		err = inside
	}
	given := status.Convert(err)
	made := &Error{Code: given.Code(), Message: given.Message(), status: given}
	made.readDetails(given.Proto().GetDetails())
	return made
}

// readDetails takes what the server said beside code and message. Details that are absent, foreign or garbage change
// nothing.
func (e *Error) readDetails(details []*anypb.Any) {
	var info errdetails.ErrorInfo
	var retry errdetails.RetryInfo
	var request errdetails.BadRequest
	var resource errdetails.ResourceInfo
	for _, detail := range details {
		for _, message := range []proto.Message{&info, &retry, &request, &resource} {
			if detail.MessageIs(message) && detail.UnmarshalTo(message) != nil {
				return
			}
		}
	}
	if info.GetDomain() == domain {
		e.Reason = info.GetReason()
		e.Metadata = info.GetMetadata()
	}
	if retry.GetRetryDelay() != nil {
		delay := retry.GetRetryDelay().AsDuration()
		e.RetryDelay = &delay
	}
	for _, violation := range request.GetFieldViolations() {
		e.Violations = append(e.Violations, Violation{violation.GetField(), violation.GetDescription()})
	}
	e.Resource = resource.GetResourceName()
}

// streamTruncated returns the failure of a stream that ended with OK but without its last event.
func streamTruncated() error {
	message := "the stream ended without its last event; the answer may be cut short"
	return &Error{
		Code:    codes.Aborted,
		Reason:  "STREAM_TRUNCATED",
		Message: message,
		status:  status.New(codes.Aborted, message),
	}
}
