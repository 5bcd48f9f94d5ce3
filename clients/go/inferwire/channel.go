package inferwire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // Lets the balancer of [Options.Balance] watch the servers' health.
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
)

// This file owns where a client calls and how: decisions that are made before any channel exists.

const (
	maxMessageBytes = 32 << 20
	defaultTimeout  = 300 * time.Second
	noTimeout       = 0
)

// gRPC itself retries by this, only while nothing of the answer has come, and it obeys the server's
// grpc-retry-pushback-ms. Loads are not in it: to repeat one is the caller's decision.
const serviceConfig = `{
	"methodConfig": [{
		"name": [{"service": "inferwire.v1.InferenceService"}],
		"retryPolicy": {
			"maxAttempts": 3,
			"initialBackoff": "0.2s",
			"maxBackoff": "2s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
		}
	}],
	"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}%s
}`

// The health name "" is the readiness of the whole server.
const balancing = `,
	"loadBalancingConfig": [{"round_robin": {}}],
	"healthCheckConfig": {"serviceName": ""}`

// Options say how [Connect] reaches a server. The zero value is right for a server on this machine, and for one
// elsewhere that has a certificate of a known authority and asks for no key.
type Options struct {
	// Token is the key that every call carries. Empty: none.
	Token string
	// TLS says how to encrypt; [TLSFromFiles] makes one. Nil: plain text to this machine, TLS with the system's
	// authorities to any other.
	TLS *tls.Config
	// PlainText calls another machine without TLS, for a network that is secured otherwise. It excludes TLS.
	PlainText bool
	// DefaultTimeout is how long a call may take whose context has no deadline. Loads and watches have none of
	// their own. 0: 300 seconds. Negative: no deadline.
	DefaultTimeout time.Duration
	// DisableRetry makes every refusal reach the caller at once. Unset: a call of InferenceService is repeated up to
	// twice on UNAVAILABLE and RESOURCE_EXHAUSTED, while nothing of its answer has come.
	DisableRetry bool
	// Balance spreads the calls over all addresses of the target in turn, and leaves out a server whose health
	// service says that it is not ready. Unset: all calls go to the first address that answers.
	Balance bool
	// DialOptions are further options of gRPC, such as interceptors. They come after the client's own.
	DialOptions []grpc.DialOption
}

// TLSFromFiles returns how to encrypt with certificates from PEM files. Each path may be empty: without ca, the
// authorities are the system's; without certificate and key, the client shows no certificate of its own. When the
// server's certificate has another name than the target, set ServerName in what is returned.
func TLSFromFiles(ca, certificate, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("inferwire: the authorities cannot be read: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("inferwire: %s holds no certificate in PEM", ca)
		}
	}
	if certificate != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("inferwire: the client's certificate cannot be used: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// dialOptions returns the options as gRPC takes them.
func (o *Options) dialOptions(way credentials.TransportCredentials) []grpc.DialOption {
	config := fmt.Sprintf(serviceConfig, "")
	if o.Balance {
		config = fmt.Sprintf(serviceConfig, balancing)
	}
	made := []grpc.DialOption{
		grpc.WithTransportCredentials(way),
		// A long prompt is silent for a while: the pings keep the connection known to what lies between, and find it
		// dead.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                30 * time.Second,
			Timeout:             10 * time.Second,
			PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes),
			grpc.MaxCallSendMsgSize(maxMessageBytes),
			// gRPC would not repeat a request of more than 256 KiB.
			grpc.MaxRetryRPCBufferSize(2*maxMessageBytes),
		),
		grpc.WithDefaultServiceConfig(config),
		grpc.WithDisableServiceConfig(),
		grpc.WithResolvers(addressList("ipv4"), addressList("ipv6")),
		grpc.WithUserAgent("inferwire-go/" + Version),
	}
	if o.Token != "" {
		made = append(made, grpc.WithPerRPCCredentials(bearer(o.Token)))
	}
	if o.DisableRetry {
		made = append(made, grpc.WithDisableRetry())
	}
	return made
}

// credentials decides between plain text and TLS.
func (o *Options) credentials(target string) (credentials.TransportCredentials, error) {
	switch {
	case o.PlainText && o.TLS != nil:
		return nil, errors.New("inferwire: choose PlainText or TLS, not both")
	case o.TLS != nil:
		return credentials.NewTLS(o.TLS), nil
	case o.PlainText || isLocal(target):
		return insecure.NewCredentials(), nil
	default:
		return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), nil
	}
}

// describe says where a client calls and how, without the token.
func (o *Options) describe(target string, way credentials.TransportCredentials) string {
	security, token := "TLS", "no token"
	if way.Info().SecurityProtocol == "insecure" {
		security = "plain text"
	}
	if o.Token != "" {
		token = "token"
	}
	return fmt.Sprintf("<Client [%s | %s | %s]>", target, security, token)
}

// timeout returns how long a call may take whose context has no deadline.
func (o *Options) timeout() time.Duration {
	if o.DefaultTimeout == 0 {
		return defaultTimeout
	}
	return max(o.DefaultTimeout, noTimeout)
}

// isLocal returns whether a gRPC target is this machine by its very name: a Unix socket, localhost, a loopback
// address, or a list of such addresses.
func isLocal(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	// Also with a scheme, such as dns:///localhost:50051 and ipv4:127.0.0.1:50051.
	address := target[strings.LastIndex(target, "/")+1:]
	for _, scheme := range []string{"dns:", "passthrough:", "ipv4:", "ipv6:"} {
		address = strings.TrimPrefix(address, scheme)
	}
	for one := range strings.SplitSeq(address, ",") {
		host := hostOf(one)
		if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

func hostOf(address string) string {
	if inside, ok := strings.CutPrefix(address, "["); ok {
		host, _, _ := strings.Cut(inside, "]")
		return host
	}
	if strings.Count(address, ":") == 1 {
		host, _, _ := strings.Cut(address, ":")
		return host
	}
	return address
}

// bearer is a key as gRPC attaches it to every call. Whether it may go in plain text is decided with the credentials.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// addressList resolves targets such as "ipv4:10.0.0.1:50051,10.0.0.2:50051", which gRPC knows in other languages; its
// value is the scheme.
type addressList string

func (s addressList) Scheme() string { return string(s) }

func (s addressList) Build(
	target resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions,
) (resolver.Resolver, error) {
	var state resolver.State
	for address := range strings.SplitSeq(target.Endpoint(), ",") {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address, ServerName: address})
	}
	return s, conn.UpdateState(state)
}

func (addressList) ResolveNow(resolver.ResolveNowOptions) {}

func (addressList) Close() {}
