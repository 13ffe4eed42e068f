//! Where a request comes from.
//!
//! A request that a trusted proxy hands on comes from the last address in `X-Forwarded-For` that is
//! not a trusted proxy's itself. What anybody else says there is not believed.

use std::convert::Infallible;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use ipnet::IpNet;

use super::App;

/// The proxies' list of addresses, the client's first.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Where a request comes from; nobody knows when it does not come by a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer(pub(super) Option<IpAddr>);

impl FromRequestParts<App> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let socket = parts.extensions.get::<Self>().copied().unwrap_or(Self(None));
        Ok(socket.behind(&app.settings().http.trusted_proxies, &parts.headers))
    }
}

impl Peer {
    /// Whoever asked, where this is a trusted proxy.
    fn behind(self, trusted: &[IpNet], headers: &HeaderMap) -> Self {
        let is_trusted = |address: IpAddr| {
            let address = address.to_canonical();
            trusted.iter().any(|network| network.contains(&address))
        };
        let Some(socket) = self.0.filter(|address| is_trusted(*address)) else { return self };
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let said = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        let mut peer = socket;
        for address in said {
            // Behind what is no address nobody knows who said what.
            let Some(address) = address_of(address.trim()) else { break };
            peer = address;
            if !is_trusted(address) {
                break;
            }
        }
        Self(Some(peer))
    }

    /// Who is counted as one: of IPv6 a customer has a whole network.
    pub(super) fn network(self) -> Option<IpAddr> {
        match self.0?.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                Some(IpAddr::V6(network.into()))
            }
            address @ IpAddr::V4(_) => Some(address),
        }
    }

    /// The same, unless it is this machine itself, where a proxy may stand for everybody.
    pub(super) fn distant_network(self) -> Option<IpAddr> {
        self.network().filter(|address| !address.is_loopback())
    }
}

/// An address as proxies write it: some add the port, and brackets around IPv6.
fn address_of(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse().ok().map(|of: std::net::SocketAddr| of.ip());
    let inside = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(with_port).or_else(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(socket: &str, lines: &[&'static str]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, axum::http::HeaderValue::from_static(line));
        }
        let peer = Peer(Some(socket.parse().unwrap())).behind(&trusted, &headers);
        peer.0.unwrap().to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        // A client that names somebody else.
        assert_eq!(behind("192.0.2.7", &["198.51.100.1"]), "192.0.2.7");
        assert_eq!(behind("10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(behind("::ffff:10.0.0.1", &["192.0.2.7:4711"]), "192.0.2.7");
        assert_eq!(behind("fd00::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        // A client that names somebody else to the first of two proxies.
        let through_two = ["198.51.100.1, 192.0.2.7", "10.0.0.2"];
        assert_eq!(behind("10.0.0.1", &through_two), "192.0.2.7");
        assert_eq!(behind("10.0.0.1", &["198.51.100.1, nobody, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(behind("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(behind("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
    }

    #[test]
    fn of_ipv6_a_network_is_one() {
        let network = |text: &str| Peer(Some(text.parse().unwrap())).network().unwrap().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
    }
}
