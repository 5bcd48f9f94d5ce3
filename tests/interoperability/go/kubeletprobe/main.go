// Command kubeletprobe asks a server once with the kubelet's own gRPC probe, and tells its result as JSON.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"os"
	"time"

	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
)

func main() {
	port := flag.Int("port", 0, "port on 127.0.0.1")
	service := flag.String("service", "", "name that is asked for")
	timeout := flag.Duration("timeout", time.Second, "timeoutSeconds of the probe; the kubelet's default is 1")
	flag.Parse()

	result, output, err := grpcprobe.New().Probe("127.0.0.1", *service, *port, *timeout)
	if err != nil {
		// None today: the kubelet would take it for Unknown and ask again.
		log.Fatal(err)
	}
	told := map[string]string{"result": string(result), "output": output}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		log.Fatal(err)
	}
}
