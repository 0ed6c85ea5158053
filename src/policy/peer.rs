//! Who a request is from: the socket's peer or, if that is a trusted proxy, the client that it names.
//! `Forwarded` is never believed: a proxy that sets one header and passes the other on as it came would
//! let its clients speak for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use super::request::host_name;
use crate::base::section::Section;

/// Address ranges (CIDR, RFC 4632 and RFC 4291).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

const ACCEPTED: &str = "accepted: a range such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address";

impl Networks {
    /// Reads a list of ranges and addresses; what is not given is inherited.
    pub fn read(section: &Section<'_>, key: &str, inherited: &Self) -> Self {
        let written = section.get(key, inherited.0.iter().map(show).collect::<Vec<_>>());
        let ranges = written.iter().filter_map(|text| {
            parse(text).map_err(|problem| section.problem(key, format!("{text:?} {problem}"))).ok()
        });
        Self(ranges.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.contains(&address))
    }
}

fn parse(text: &str) -> Result<IpNet, String> {
    let range = match text.split_once('/') {
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
        Some((address, length)) => {
            let is_number = length.bytes().all(|b| b.is_ascii_digit());
            let length = length.parse().ok().filter(|_| is_number);
            address.parse().ok().zip(length).and_then(|(address, length)| IpNet::new(address, length).ok())
        }
    };
    let range = canonical(range.ok_or_else(|| format!("is no address range; {ACCEPTED}"))?);
    // Either the address or the length is a slip, and only the writer knows which.
    if range.trunc() != range {
        let (whole, one) = (range.trunc(), range.addr());
        return Err(format!("has host bits set: the range is \"{whole}\", the one address \"{one}\""));
    }
    Ok(range)
}

/// Peers are compared in their IPv4 form, so a range of IPv4-mapped addresses would never match.
fn canonical(range: IpNet) -> IpNet {
    match (range.addr().to_canonical(), range.prefix_len().checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(length)) => IpNet::new(address, length).unwrap_or(range),
        _ => range,
    }
}

fn show(range: &IpNet) -> String {
    if range.prefix_len() == range.max_prefix_len() { range.addr().to_string() } else { range.to_string() }
}

/// What is believed of a request's peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who has connected.
    pub socket: IpAddr,
    /// The client.
    pub address: IpAddr,
    /// The socket's peer is a trusted proxy. Only then are the next three ever there.
    pub trusted: bool,
    /// `http` or `https`.
    pub proto: Option<&'static str>,
    /// `host[:port]`, as [`host_name`] accepts it.
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    /// A peer that is not trusted has sent `X-Forwarded-*`.
    pub ignored: bool,
}

impl Peer {
    /// Of whom nothing else is known.
    pub fn at(address: IpAddr) -> Self {
        Self { socket: address, address, trusted: false, proto: None, host: None, port: None, ignored: false }
    }

    pub fn of(socket: IpAddr, headers: &HeaderMap, trusted: &Networks) -> Self {
        let socket = socket.to_canonical();
        if !trusted.contains(socket) {
            let ignored = headers.keys().any(|name| name.as_str().starts_with("x-forwarded-"));
            return Self { ignored, ..Self::at(socket) };
        }
        Self {
            socket,
            address: client(socket, headers, trusted),
            trusted: true,
            proto: only(headers, "x-forwarded-proto").and_then(scheme),
            host: only(headers, "x-forwarded-host").filter(|host| host_name(host).is_some()).map(Box::from),
            port: only(headers, "x-forwarded-port").and_then(port),
            ignored: false,
        }
    }
}

/// From right to left, each address was written by the one before it: the first that is not trusted is
/// the client, and whatever stands further left is the client's own tale.
fn client(socket: IpAddr, headers: &HeaderMap, trusted: &Networks) -> IpAddr {
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let mut reached = socket;
    for entry in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        // Behind "unknown" or anything else that is no address nobody knows who wrote what.
        let Some(address) = address(entry) else { break };
        reached = address;
        if !trusted.contains(address) {
            break;
        }
    }
    reached
}

/// `ip`, `ip:port`, `[v6]` or `[v6]:port`.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip())),
    };
    address.map(|address| address.to_canonical())
}

/// The one value of a header. Of several, on one line or more, nobody knows which the proxy wrote.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    line.to_str().ok().filter(|value| !value.contains(','))
}

fn scheme(text: &str) -> Option<&'static str> {
    // Traefik calls the scheme of an upgrade by its WebSocket name.
    let names = [("http", "http"), ("https", "https"), ("ws", "http"), ("wss", "https")];
    names.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, scheme)| scheme)
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0 && text.bytes().all(|b| b.is_ascii_digit()))
}

/// What stands for one party where addresses are counted: an IPv4 address, or the /64 of an IPv6 address,
/// for every host chooses the other half at will. IPv4 takes `0:ffff::/32`, which no host has (RFC 4291
/// reserves `::/8`).
pub fn prefix(address: IpAddr) -> [u8; 8] {
    let bits = match address.to_canonical() {
        IpAddr::V4(address) => 0xffff << 32 | u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            [a, b, c, d].into_iter().fold(0, |bits, segment| bits << 16 | u64::from(segment))
        }
    };
    bits.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::section::Document;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn networks(ranges: &[&str]) -> Networks {
        Networks(ranges.iter().map(|text| parse(text).unwrap()).collect())
    }

    /// Two proxies in a row, and one that speaks IPv6.
    fn proxies() -> Networks {
        networks(&["10.0.0.0/8", "192.0.2.1", "2001:db8:ffff::/48"])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        lines.iter().map(line).collect()
    }

    /// Who it is behind the proxy 10.0.0.1 that sends these lines.
    fn behind(lines: &[&str]) -> IpAddr {
        let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        Peer::of(ip("10.0.0.1"), &headers(&lines), &proxies()).address
    }

    fn read(text: &str, inherited: &Networks) -> (Networks, Vec<String>, Vec<String>) {
        let document = Document::parse(text, std::iter::empty());
        let read = Networks::read(&document.root().unwrap().section("listen"), "trusted_proxies", inherited);
        let (problems, _, effective) = document.finish();
        let shown = effective.into_iter().map(|effective| effective.value).collect();
        (read, problems.iter().map(ToString::to_string).collect(), shown)
    }

    fn read_one(entry: &str) -> (Networks, Vec<String>) {
        let (read, problems, _) =
            read(&format!("[listen]\ntrusted_proxies = [\"{entry}\"]"), &Networks::default());
        (read, problems)
    }

    #[test]
    fn ranges_and_single_addresses_are_read() {
        let given = "[listen]\ntrusted_proxies = [\"10.0.0.0/8\", \"192.0.2.1\", \"2001:DB8:ffff::/48\"]";
        let (read, problems, _) = read(given, &networks(&["172.16.0.0/12"]));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(read, proxies());
        for inside in ["10.255.0.1", "192.0.2.1", "2001:db8:ffff:1::1", "::ffff:10.0.0.1"] {
            assert!(read.contains(ip(inside)), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.2", "2001:db8:fffe::1", "::10.0.0.1", "172.16.0.1", "::"] {
            assert!(!read.contains(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn what_is_not_given_is_inherited_and_shown_as_it_would_be_written() {
        let (inherited, problems, shown) = read("[listen]", &proxies());
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(inherited, proxies());
        assert_eq!(shown, ["[\"10.0.0.0/8\", \"192.0.2.1\", \"2001:db8:ffff::/48\"]"]);
        let (none, _, _) = read("[listen]\ntrusted_proxies = []", &proxies());
        assert!(none.is_empty() && !proxies().is_empty());
        assert!(!none.contains(ip("10.0.0.1")));
    }

    #[test]
    fn what_is_no_range_is_a_problem_that_names_the_entry_and_what_is_accepted() {
        for wrong in [
            "",
            "10",
            "10.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/ 8",
            "10.0.0.0/8/8",
            "010.0.0.0/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.1:80",
            "2001:db8::/129",
            "[2001:db8::]/32",
            "fe80::1%eth0",
            "proxy.example.com",
            "*",
        ] {
            let (read, problems) = read_one(wrong);
            assert!(read.is_empty(), "{wrong}");
            assert_eq!(problems.len(), 1, "{wrong}: {problems:?}");
            assert!(problems[0].starts_with("line 2: listen.trusted_proxies"), "{problems:?}");
            assert!(problems[0].ends_with(&format!("{wrong:?} is no address range; {ACCEPTED}")));
        }
    }

    #[test]
    fn a_range_with_host_bits_is_a_problem_that_names_the_right_one() {
        for (wrong, range, one) in [
            ("10.0.0.1/8", "10.0.0.0/8", "10.0.0.1"),
            ("2001:db8::1/32", "2001:db8::/32", "2001:db8::1"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8", "10.0.0.1"),
            ("1.2.3.4/0", "0.0.0.0/0", "1.2.3.4"),
        ] {
            let (read, problems) = read_one(wrong);
            assert!(read.is_empty() && problems.len() == 1, "{wrong}: {problems:?}");
            let both = format!("the range is \"{range}\", the one address \"{one}\"");
            assert!(problems[0].contains(&format!("{wrong:?}")) && problems[0].ends_with(&both));
        }
    }

    #[test]
    fn ranges_of_mapped_addresses_are_ipv4_and_no_family_covers_the_other() {
        assert_eq!(networks(&["::ffff:10.0.0.0/104"]), networks(&["10.0.0.0/8"]));
        assert_eq!(networks(&["::ffff:10.0.0.1"]), networks(&["10.0.0.1"]));
        assert!(!networks(&["0.0.0.0/0"]).contains(ip("2001:db8::1")));
        assert!(!networks(&["::/0"]).contains(ip("10.0.0.1")));
        assert!(!networks(&["::/0"]).contains(ip("::ffff:10.0.0.1")));
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        let cases: &[(&[&str], &str)] = &[
            (&[], "10.0.0.1"),
            (&["203.0.113.7"], "203.0.113.7"),
            (&["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
            (&["1.1.1.1,203.0.113.7,10.0.0.9,\t192.0.2.1 "], "203.0.113.7"),
            (&["1.1.1.1", "203.0.113.7", "10.0.0.9"], "203.0.113.7"),
            (&["1.1.1.1, 203.0.113.7", "10.0.0.9, 10.0.0.8", "10.0.0.7"], "203.0.113.7"),
            (&["203.0.113.7, 2001:db8:ffff::9"], "203.0.113.7"),
            (&["::ffff:203.0.113.7, ::ffff:10.0.0.9"], "203.0.113.7"),
            // All are trusted: the left-most.
            (&["10.0.0.9"], "10.0.0.9"),
            (&["10.0.0.9, 10.0.0.8", "10.0.0.7"], "10.0.0.9"),
        ];
        for (lines, client) in cases {
            assert_eq!(behind(lines), ip(client), "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_walk_at_the_last_one_reached() {
        for no_address in [
            "",
            " ",
            "unknown",
            "_hidden",
            "203.0.113.999",
            "0203.0.113.7",
            "203.0.113.7:",
            "203.0.113.7:70000",
            "[203.0.113.7]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]x",
            "\"203.0.113.7\"",
            "for=203.0.113.7",
            "203.0.113.7 10.0.0.9",
            "caf\u{e9}",
        ] {
            assert_eq!(behind(&[no_address]), ip("10.0.0.1"), "{no_address}");
            let line = format!("1.1.1.1, {no_address}, 10.0.0.9");
            assert_eq!(behind(&[&line]), ip("10.0.0.9"), "{no_address}");
            assert_eq!(behind(&["1.1.1.1", no_address, "10.0.0.9"]), ip("10.0.0.9"), "{no_address}");
        }
    }

    #[test]
    fn addresses_come_with_and_without_port_and_brackets() {
        for (written, address) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:DB8::1]:4711", "2001:db8::1"),
            ("[::ffff:203.0.113.7]:4711", "203.0.113.7"),
        ] {
            assert_eq!(behind(&[written]), ip(address), "{written}");
        }
    }

    #[test]
    fn a_peer_that_is_not_trusted_speaks_for_itself_only() {
        let said = headers(&[
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a"),
            ("x-forwarded-port", "443"),
        ]);
        let expected = |ignored| Peer { ignored, ..Peer::at(ip("203.0.113.7")) };
        for (socket, trusted) in [
            ("203.0.113.7", proxies()),
            ("::ffff:203.0.113.7", proxies()),
            ("203.0.113.7", Networks::default()),
        ] {
            assert_eq!(Peer::of(ip(socket), &said, &trusted), expected(true));
        }
        for (name, ignored) in [
            ("X-Forwarded-For", true),
            ("x-forwarded-prefix", true),
            ("x-real-ip", false),
            ("forwarded", false),
            ("x-forwarded", false),
        ] {
            let peer = Peer::of(ip("203.0.113.7"), &headers(&[(name, "1.1.1.1")]), &proxies());
            assert_eq!(peer, expected(ignored), "{name}");
        }
        assert_eq!(Peer::of(ip("203.0.113.7"), &HeaderMap::new(), &proxies()), expected(false));
    }

    #[test]
    fn forwarded_and_x_real_ip_are_never_believed() {
        let said = headers(&[("forwarded", "for=1.1.1.1;proto=https;host=a"), ("x-real-ip", "1.1.1.1")]);
        let peer = Peer::of(ip("10.0.0.1"), &said, &proxies());
        let silent = Peer::of(ip("10.0.0.1"), &HeaderMap::new(), &proxies());
        assert_eq!(peer, silent);
        assert_eq!((peer.address, peer.trusted, peer.ignored), (ip("10.0.0.1"), true, false));
    }

    #[test]
    fn a_trusted_proxy_tells_scheme_host_and_port() {
        let of = |name: &str, values: &[&str]| {
            let lines: Vec<_> = values.iter().map(|value| (name, *value)).collect();
            Peer::of(ip("::ffff:10.0.0.1"), &headers(&lines), &proxies())
        };
        for (value, proto) in [("https", "https"), ("http", "http"), ("HTTPS", "https")] {
            assert_eq!(of("x-forwarded-proto", &[value]).proto, Some(proto));
        }
        for wrong in [&["wsx"][..], &["ftp"], &[""], &["https,http"], &["https", "https"]] {
            assert_eq!(of("x-forwarded-proto", wrong).proto, None, "{wrong:?}");
        }
        for host in ["chat.example.com", "chat.example.com:8443", "[::1]:80"] {
            assert_eq!(of("x-forwarded-host", &[host]).host.as_deref(), Some(host));
        }
        for wrong in [&[""][..], &["a b"], &["a/b"], &["u@a"], &["a:x"], &["a,b"], &["a, b"], &["a", "a"]] {
            assert_eq!(of("x-forwarded-host", wrong).host, None, "{wrong:?}");
        }
        assert_eq!(of("x-forwarded-port", &["8443"]).port, Some(8443));
        for wrong in [&[""][..], &["0"], &["-1"], &["+80"], &["65536"], &["80,80"], &["80", "80"]] {
            assert_eq!(of("x-forwarded-port", wrong).port, None, "{wrong:?}");
        }
    }

    #[test]
    fn one_party_is_an_ipv4_address_or_a_64() {
        assert_eq!(prefix(ip("192.0.2.1")), prefix(ip("::ffff:192.0.2.1")));
        assert_eq!(prefix(ip("2001:db8::1")), prefix(ip("2001:db8::ffff:0:0:1")));
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "::1", "0.0.0.0"];
        let prefixes: std::collections::HashSet<_> = all.iter().map(|text| prefix(ip(text))).collect();
        assert_eq!(prefixes.len(), all.len());
    }

    /// Addresses near the trusted ranges, in every spelling.
    fn hop() -> impl Strategy<Value = String> {
        let address = prop_oneof![
            (0..=255_u8).prop_map(|n| format!("10.0.0.{n}")),
            (0..=255_u8).prop_map(|n| format!("203.0.113.{n}")),
            any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_string()),
            Just("2001:db8:ffff::1".to_owned()),
        ];
        (address, 0..5_u8).prop_map(|(address, spelling)| match (spelling, ip(&address)) {
            (0, v4 @ IpAddr::V4(_)) => format!("::ffff:{v4}"),
            (1, socket) => SocketAddr::new(socket, 4711).to_string(),
            (2, IpAddr::V6(v6)) => format!("[{v6}]"),
            _ => address,
        })
    }

    fn lines() -> impl Strategy<Value = Vec<String>> {
        let entry = prop_oneof![4 => hop(), 1 => "[0-9a-f:.\\[\\] ]{0,12}", 1 => "[ -~]{0,12}"];
        let line = prop::collection::vec(entry, 0..5).prop_map(|entries| entries.join(", "));
        prop::collection::vec(line, 0..4)
    }

    proptest! {
        #[test]
        fn the_client_is_an_address_that_a_proxy_or_the_socket_reported(
            lines in lines(), socket in hop(),
        ) {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", line.as_str())).collect();
            let socket = address(socket.as_bytes()).unwrap();
            let peer = Peer::of(socket, &headers(&lines), &proxies());
            let reported = lines.iter().flat_map(|(_, line)| line.split(',')).any(|entry| {
                let entry = entry.trim();
                let host = entry.parse::<SocketAddr>().map(|socket| socket.ip());
                let host = host.or_else(|_| entry.trim_matches(['[', ']']).parse());
                host.is_ok_and(|host| host.to_canonical() == peer.address)
            });
            prop_assert!(peer.address == socket || (peer.trusted && reported), "{}", peer.address);
            prop_assert_eq!(peer.trusted, proxies().contains(socket));
        }

        #[test]
        fn nothing_that_a_client_writes_makes_it_another(tale in lines(), hops in 0..3_usize) {
            let real = "203.0.113.7";
            let mut lines: Vec<_> = tale.iter().map(|line| ("x-forwarded-for", line.as_str())).collect();
            // The proxy next to the client writes a line of its own, the others likewise.
            lines.push(("x-forwarded-for", real));
            lines.extend(["10.0.0.9", "192.0.2.1"].iter().take(hops).map(|hop| ("x-forwarded-for", *hop)));
            let peer = Peer::of(ip("10.0.0.1"), &headers(&lines), &proxies());
            prop_assert_eq!(peer.address, ip(real));
            // Or it appends to the client's last line.
            let last = tale.last().map_or(real.to_owned(), |last| format!("{last},{real}"));
            let peer = Peer::of(ip("10.0.0.1"), &headers(&[("x-forwarded-for", &last)]), &proxies());
            prop_assert_eq!(peer.address, ip(real));
        }
    }
}
