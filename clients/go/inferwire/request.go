package inferwire

import (
	"strings"

	pb "inferwire.dev/go/inferwire/v1"
)

// This file owns the short way to say what callers write most. What is not said stays unset, and the server's default is
// in force; a zero is said with a pointer, such as proto.Uint32(0).

// Prompt returns a request to complete raw text. Set the rest in it.
func Prompt(text string) *pb.CompleteRequest {
	return &pb.CompleteRequest{Input: &pb.CompleteRequest_Prompt{Prompt: text}}
}

// Chat returns a request to answer a conversation. Set the rest in it.
func Chat(messages ...*pb.Message) *pb.CompleteRequest {
	return &pb.CompleteRequest{Input: &pb.CompleteRequest_Chat{Chat: &pb.Chat{Messages: messages}}}
}

// System returns the operator's turn, which stands first in a chat.
func System(text string) *pb.Message {
	return turn(pb.Role_ROLE_SYSTEM, text)
}

// User returns a person's turn.
func User(text string) *pb.Message {
	return turn(pb.Role_ROLE_USER, text)
}

// Assistant returns a turn of the model. An answer's own message says more (thoughts, tool calls): prefer it.
func Assistant(text string) *pb.Message {
	return turn(pb.Role_ROLE_ASSISTANT, text)
}

// ToolResult returns the turn that answers the tool call callID.
func ToolResult(callID, text string) *pb.Message {
	result := &pb.ToolResult{CallId: callID, Text: text}
	return &pb.Message{
		Role:  pb.Role_ROLE_TOOL,
		Parts: []*pb.Part{{Part: &pb.Part_ToolResult{ToolResult: result}}},
	}
}

// TextOf returns the message's text parts, joined; thoughts and tool calls are not text.
func TextOf(message *pb.Message) string {
	var text strings.Builder
	for _, part := range message.GetParts() {
		text.WriteString(part.GetText())
	}
	return text.String()
}

func turn(role pb.Role, text string) *pb.Message {
	return &pb.Message{Role: role, Parts: []*pb.Part{{Part: &pb.Part_Text{Text: text}}}}
}
