package inferwire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"inferwire.dev/go/inferwire"
)

// Who trusts the server's authority and shows a certificate of the client's is served; nobody else is.
func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	serverPair, err := tls.LoadX509KeyPair(ours.issue(t, "inferwire.example"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ours.certificate)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{serverPair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
	})))
	(&fake{scripts: []script{{}}}).register(server)
	serve(t, server, listener)

	certificate, key := ours.issue(t, "caller")
	foreign, foreignKey := theirs.issue(t, "caller")
	for name, test := range map[string]struct {
		ca, certificate, key, serverName string
		ok                               bool
	}{
		"all is right":                {ours.path, certificate, key, "inferwire.example", true},
		"the server's name is wrong":  {ours.path, certificate, key, "other.example", false},
		"an unknown authority":        {theirs.path, certificate, key, "inferwire.example", false},
		"no certificate":              {ours.path, "", "", "inferwire.example", false},
		"a certificate of a stranger": {ours.path, foreign, foreignKey, "inferwire.example", false},
		"the system's authorities":    {"", certificate, key, "inferwire.example", false},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := inferwire.TLSFromFiles(test.ca, test.certificate, test.key)
			if err != nil {
				t.Fatal(err)
			}
			config.ServerName = test.serverName
			client := connect(t, listener.Addr().String(), &inferwire.Options{TLS: config, Token: "secret", DisableRetry: true})
			_, err = client.ListModels(t.Context(), nil)
			if test.ok && err != nil {
				t.Error(err)
			} else if !test.ok {
				wantError(t, err, codes.Unavailable, "")
			}
		})
	}
}

// Files that are not what they should be are refused before any call.
func TestTLSFiles(t *testing.T) {
	authority := newAuthority(t)
	certificate, _ := authority.issue(t, "caller")
	_, otherKey := authority.issue(t, "caller")
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for name, test := range map[string][3]string{
		"no such authority":            {missing, "", ""},
		"an authority without PEM":     {os.Args[0], "", ""},
		"no such certificate":          {"", missing, missing},
		"a certificate without a key":  {"", certificate, ""},
		"a key of another certificate": {"", certificate, otherKey},
	} {
		if _, err := inferwire.TLSFromFiles(test[0], test[1], test[2]); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Balanced calls go to all servers of a list in turn, and to none that says it is not ready.
func TestBalance(t *testing.T) {
	var servers [2]*fake
	var healths [2]*health.Server
	target := "ipv4:"
	for i := range servers {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		servers[i] = &fake{address: listener.Addr().String(), scripts: []script{{}}}
		healths[i] = health.NewServer()
		servers[i].register(server)
		grpc_health_v1.RegisterHealthServer(server, healths[i])
		serve(t, server, listener)
		if i > 0 {
			target += ","
		}
		target += servers[i].address
	}
	client := connect(t, target, &inferwire.Options{Balance: true})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	call := func() {
		t.Helper()
		if _, err := client.ListModels(ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
	for len(servers[0].received()) == 0 || len(servers[1].received()) == 0 {
		call()
	}
	before := [2]int{len(servers[0].received()), len(servers[1].received())}
	for range 10 {
		call()
	}
	for i, server := range servers {
		if got := len(server.received()) - before[i]; got != 5 {
			t.Errorf("server %d got %d of 10 calls", i, got)
		}
		// Each server is called by its own name, not by the list.
		if got := server.received()[0].metadata.Get(":authority"); !slices.Equal(got, []string{server.address}) {
			t.Errorf("server %s was called %q", server.address, got)
		}
	}

	healths[0].SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	for run := 0; run < 10; {
		seen := len(servers[0].received())
		call()
		if run++; len(servers[0].received()) > seen {
			run = 0
		}
	}
	healths[0].SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	for seen := len(servers[0].received()); len(servers[0].received()) == seen; {
		call()
	}
}

// An authority signs certificates for one test.
type authority struct {
	path        string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	data, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(data)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{path: writePEM(t, "CERTIFICATE", data), certificate: certificate, key: key}
}

// issue returns the files of a certificate for a name, and of its key.
func (a *authority) issue(t *testing.T, name string) (certificate, key string) {
	t.Helper()
	own := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{name},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	data, err := x509.CreateCertificate(rand.Reader, template, a.certificate, own.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "CERTIFICATE", data), writePEM(t, "PRIVATE KEY", private)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, kind string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
