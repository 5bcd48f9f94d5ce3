//! Where a client calls and how: the decisions that are made before any connection exists.

use std::net::IpAddr;
use std::time::Duration;

use http::HeaderValue;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::connection::Connection;
use crate::error::Error;

/// The largest message that is sent or taken, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// How long a call may take when nothing else is said. Loads and watches have no deadline of their own.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

// A long prompt is silent for a while: the pings keep the connection known to what lies between, and find it dead.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
// gRPC's own for a target without one.
const DEFAULT_PORT: &str = "443";
const USER_AGENT: &str = concat!("inferwire-rust/", env!("CARGO_PKG_VERSION"));

/// How to connect. The default: plain text to this machine and TLS to any other, no token, retries, 300 s.
#[derive(Clone)]
pub struct Options {
    token: Option<String>,
    security: Security,
    pub(crate) default_timeout: Duration,
    retry: bool,
}

#[derive(Clone)]
enum Security {
    ByTarget,
    PlainText,
    #[cfg(feature = "tls")]
    Tls(Tls),
}

impl Options {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self { token: None, security: Security::ByTarget, default_timeout: DEFAULT_TIMEOUT, retry: true }
    }

    /// Sets the key that every call carries.
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// Calls in plain text, for a network that is trusted or secured otherwise.
    pub fn plain_text(self) -> Self {
        Self { security: Security::PlainText, ..self }
    }

    /// Calls with TLS, also on this machine.
    #[cfg(feature = "tls")]
    pub fn tls(self, tls: Tls) -> Self {
        Self { security: Security::Tls(tls), ..self }
    }

    /// Sets how long a call may take when it does not say so itself; [`Duration::MAX`]: no deadline.
    pub fn default_timeout(self, timeout: Duration) -> Self {
        Self { default_timeout: timeout, ..self }
    }

    /// Sets whether a refused call of the inference service is repeated while nothing of its answer has come.
    pub fn retry(self, retry: bool) -> Self {
        Self { retry, ..self }
    }

    /// Returns the connection, which is not opened yet, and the way in words.
    pub(crate) fn connect(&self, target: &str) -> Result<(Connection, String), Error> {
        let place = Place::of(target)?;
        let with_tls = match self.security {
            Security::ByTarget => !place.is_local(),
            Security::PlainText => false,
            #[cfg(feature = "tls")]
            Security::Tls(_) => true,
        };
        let authorization = self.token.as_deref().map(bearer).transpose()?;
        let channel = self.channel(&place, with_tls)?;
        let way = format!(
            "{target} | {} | {}",
            if with_tls { "TLS" } else { "plain text" },
            if authorization.is_some() { "token" } else { "no token" },
        );
        Ok((Connection::new(channel, authorization, self.retry), way))
    }

    fn channel(&self, place: &Place, with_tls: bool) -> Result<Channel, Error> {
        let endpoint = Endpoint::from_shared(place.uri(with_tls))
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(|error| invalid(format!("the target cannot be read: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = if with_tls { self.secure(endpoint)? } else { endpoint };
        Ok(endpoint.connect_lazy())
    }

    #[cfg(feature = "tls")]
    fn secure(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        let tls = match &self.security {
            Security::Tls(tls) => tls.clone(),
            _ => Tls::new(),
        };
        endpoint.tls_config(tls.config()).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            invalid(format!("TLS cannot be set up: {}", cause.unwrap_or_else(|| error.to_string())))
        })
    }

    #[cfg(not(feature = "tls"))]
    fn secure(&self, _: Endpoint) -> Result<Endpoint, Error> {
        Err(invalid("this build has no TLS: enable the feature `tls`, or say Options::plain_text"))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// Whom a TLS connection trusts, and who the client says it is.
#[cfg(feature = "tls")]
#[derive(Clone, Default)]
pub struct Tls {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

#[cfg(feature = "tls")]
impl Tls {
    /// Trusts the certificate authorities of the system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts these certificate authorities (PEM) in place of the system's.
    pub fn ca(self, pem: impl Into<Vec<u8>>) -> Self {
        Self { ca: Some(pem.into()), ..self }
    }

    /// Shows the server a certificate with its chain, and proves it with its private key (both PEM).
    pub fn identity(self, certificate_pem: impl Into<Vec<u8>>, key_pem: impl Into<Vec<u8>>) -> Self {
        Self { identity: Some((certificate_pem.into(), key_pem.into())), ..self }
    }

    /// Expects this name in the server's certificate, in place of the target's host.
    pub fn server_name(self, name: impl Into<String>) -> Self {
        Self { server_name: Some(name.into()), ..self }
    }

    fn config(self) -> tonic::transport::ClientTlsConfig {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};

        // tonic bounds the TCP connection alone by the connection's own timeout.
        let config = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
        let config = match self.ca {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        };
        let config = match self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        };
        match self.server_name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

/// What a gRPC target names.
enum Place {
    Socket(String),
    Host { host: String, port: u16 },
}

impl Place {
    /// Reads a target as gRPC writes it: `host:port`, also with one of the schemes `dns:`, `ipv4:`, `ipv6:`, `unix:`.
    fn of(target: &str) -> Result<Self, Error> {
        if let Some(path) = target.strip_prefix("unix:") {
            return Ok(Self::Socket(path.strip_prefix("//").unwrap_or(path).to_owned()));
        }
        let unreadable = || {
            invalid(format!(
                "the target {target:?} cannot be read: write host:port, and say with Options whether it is TLS"
            ))
        };
        let schemes = ["dns:///", "dns:", "ipv4:", "ipv6:"];
        let address = schemes.iter().find_map(|scheme| target.strip_prefix(scheme)).unwrap_or(target);
        if address.is_empty() || address.contains('/') {
            return Err(unreadable());
        }
        let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match address.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                // A bare IPv6 address, or no port at all.
                _ => (address, None),
            },
        };
        let port = port.unwrap_or(DEFAULT_PORT).parse().map_err(|_| unreadable())?;
        Ok(Self::Host { host: host.to_owned(), port })
    }

    /// Returns whether it is this machine by its very name: a Unix socket, localhost, a loopback address.
    fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Host { host, .. } => {
                host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        }
    }

    fn uri(&self, with_tls: bool) -> String {
        match self {
            Self::Socket(path) => format!("unix:{path}"),
            Self::Host { host, port } => {
                let scheme = if with_tls { "https" } else { "http" };
                match host.contains(':') {
                    true => format!("{scheme}://[{host}]:{port}"),
                    false => format!("{scheme}://{host}:{port}"),
                }
            }
        }
    }
}

fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| invalid("the token holds a character that a header cannot carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, message)
}
