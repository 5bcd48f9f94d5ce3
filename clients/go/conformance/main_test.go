package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"inferwire.dev/go/inferwire"
	pb "inferwire.dev/go/inferwire/v1"
	"inferwire.dev/go/internal/scripted"
)

// Each line of the table is asked of a real server, and answered by one line in the same order.
func TestLines(t *testing.T) {
	server, err := scripted.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	many := inferwire.Prompt(`{"events": [{"text": "a", "repeat": 9}]}`)
	tests := []struct {
		method  string
		request proto.Message
		more    string
		want    string
	}{
		{"Complete", inferwire.Prompt("Hi"), "", `messages 1`},
		{"StreamComplete", many, "", `messages 11`},
		{"StreamComplete", many, `, "cancel_after": 3`, `messages 3 left early`},
		{"StreamComplete", many, `, "cancel_after": 0`, `messages 0 left early`},
		{"GatherStream", many, "", `messages 1`},
		{"Load", &pb.LoadRequest{Model: "x"}, "", `messages 0 INVALID_ARGUMENT INVALID_REQUEST source: must be set for this name`},
		{"StreamLoad", &pb.LoadRequest{Model: "x"}, "", `messages 0 INVALID_ARGUMENT INVALID_REQUEST source: must be set for this name`},
		{"Unload", &pb.UnloadRequest{Model: "x"}, "", `messages 1`},
		{"ListModels", &pb.ListModelsRequest{}, "", `messages 1`},
		{"GetModel", &pb.GetModelRequest{Model: "nope"}, "", `messages 0 NOT_FOUND MODEL_NOT_FOUND nope`},
		{"WatchModels", &pb.WatchModelsRequest{}, `, "cancel_after": 1`, `messages 1 left early`},
		{"ListBackends", &pb.ListBackendsRequest{}, "", `messages 1`},
		{"Health", &pb.HealthRequest{}, "", `messages 1`},
		{"Embed", &pb.EmbedRequest{Inputs: []string{"a"}}, "", `messages 0 FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND model: gives no embeddings`},
		{"CountTokens", many, "", `messages 1`},
		{"Tokenize", &pb.TokenizeRequest{Text: "a"}, "", `messages 1`},
		{"Detokenize", &pb.DetokenizeRequest{TokenIds: []uint32{97}}, "", `messages 1`},
		{"HealthCheck", &grpc_health_v1.HealthCheckRequest{}, "", `messages 1`},
		{"HealthWatch", &grpc_health_v1.HealthCheckRequest{}, `, "cancel_after": 1`, `messages 1 left early`},
		{"HealthWatch", &grpc_health_v1.HealthCheckRequest{}, `, "timeout_ms": 50`, `messages 1 DEADLINE_EXCEEDED `},
		{"Nothing", &pb.HealthRequest{}, "", `fault there is no method "Nothing"`},
	}
	var input bytes.Buffer
	for i, test := range tests {
		request, err := proto.Marshal(test.request)
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&input, `{"id": "%d", "connect": {"target": "%s", "tls": false}, "call": {"method": "%s", "request": %s%s}}`+"\n",
			i, server.Address, test.method, encoded, test.more)
	}
	input.WriteString("no JSON\n")
	var output bytes.Buffer
	if err := answerAll(&input, &output); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(output.String()), "\n")
	if len(lines) != len(tests)+1 {
		t.Fatalf("%d lines came for %d", len(lines), len(tests)+1)
	}
	for i, test := range tests {
		id, got := brief(t, lines[i])
		if id != fmt.Sprint(i) || got != test.want {
			t.Errorf("%s: line %s says %s, want %s", test.method, id, got, test.want)
		}
	}
	if id, got := brief(t, lines[len(tests)]); id != "" || !strings.HasPrefix(got, "fault ") {
		t.Errorf("no JSON: line %s says %s", id, got)
	}
}

// brief returns an answer's id and what it says in one line.
func brief(t *testing.T, text string) (id, says string) {
	t.Helper()
	var given struct {
		answer
		ID    string `json:"id"`
		Fault string `json:"fault"`
	}
	if err := json.Unmarshal([]byte(text), &given); err != nil {
		t.Fatal(err)
	}
	if given.Fault != "" {
		return given.ID, "fault " + given.Fault
	}
	says = fmt.Sprintf("messages %d", len(given.Messages))
	if given.LeftEarly {
		says += " left early"
	}
	if failed := given.Error; failed != nil {
		says += " " + failed.Code + " " + failed.Reason
		if failed.Resource != "" {
			says += " " + failed.Resource
		}
		for _, violation := range failed.Violations {
			says += " " + violation.Field + ": " + violation.Description
		}
	}
	return given.ID, says
}
