// Package scripted starts a real inferwire server that says what it is told, for the tests of this module.
//
// The server's command line is that of the environment variable INFERWIRE_SERVER; without it, the program is the one in
// the .venv of this repository.
package scripted

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A Server is a process that serves the model "scripted".
type Server struct {
	// Address is where it listens.
	Address string

	process *exec.Cmd
}

// Start starts a server and returns when it listens.
func Start() (*Server, error) {
	program, err := command()
	if err != nil {
		return nil, err
	}
	process := exec.Command("sh", "-c", "exec "+program+" serve --scripted --log-level warning --address 127.0.0.1:0")
	process.Stderr = os.Stderr
	// The server would take INFERWIRE_ variables for its own configuration.
	process.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "INFERWIRE_")
	})
	output, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	server := &Server{process: process}
	line, err := bufio.NewReader(output).ReadString('\n')
	_, address, found := strings.Cut(strings.TrimSpace(line), " listens on ")
	if err != nil || !found {
		server.Stop()
		return nil, fmt.Errorf("the server began with %q: %w", line, err)
	}
	server.Address = address
	return server, nil
}

// Stop ends the server at once.
func (s *Server) Stop() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
}

func command() (string, error) {
	if line := os.Getenv("INFERWIRE_SERVER"); line != "" {
		return line, nil
	}
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for directory := here; ; directory = filepath.Dir(directory) {
		program := filepath.Join(directory, ".venv", "bin", "inferwire")
		if _, err := os.Stat(program); err == nil {
			return "'" + program + "'", nil
		}
		if directory == filepath.Dir(directory) {
			return "", errors.New("there is no server: run `make setup` in the repository, or set INFERWIRE_SERVER")
		}
	}
}
