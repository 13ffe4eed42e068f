//! What can be wrong with a request: one thing at a time, chosen by chance.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _};
use serde_json::{Map, Value, json};

use super::request::{Body, RAW, Request};

/// Makes one to three things of a request wrong. Returns the raw text that stands for [`RAW`].
pub fn mutate(request: &mut Request, random: &mut StdRng) -> String {
    let raw = RAWS.choose(random).copied().unwrap_or("NaN");
    for _ in 0..random.random_range(1..=3) {
        match random.random_range(0..100) {
            0..45 => body(request, random),
            45..60 => query(request, random),
            60..75 => path(request, random),
            75..92 => headers(request, random),
            _ => method(request, random),
        }
    }
    raw.to_owned()
}

/// JSON texts, and texts that are none.
const RAWS: &[&str] = &[
    "NaN",
    "Infinity",
    "-0",
    "1e999",
    "-1e-999",
    "0.1e1",
    "01",
    "1.",
    "0x10",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\u0000\"",
    "\"\t\"",
    "\"open",
    "1,\"quantity\":2,\"title\":3",
    "{\"a\":1,\"a\":2}",
    "'single'",
    "/* comment */ 1",
    "99999999999999999999999999999999999999999999999999",
    "-9223372036854775809",
    "18446744073709551616",
    "null null",
];

/// Texts that something might stumble over.
const TEXTS: &[&str] = &[
    "",
    " ",
    "\0",
    "a\0b",
    "\u{7f}",
    "\u{202e}gnp.exe",
    "\u{feff}bom",
    "\u{fffd}",
    "\u{10ffff}",
    "👩‍👩‍👧‍👦",
    "İstanbul ẞ ﬁ",
    "Ａｄｍｉｎ",
    "../../../../etc/passwd",
    "%2e%2e%2f",
    "' OR 1=1 --",
    "\"; DROP TABLE events; --",
    "${jndi:ldap://127.0.0.1/a}",
    "{{7*7}}",
    "%s%s%n",
    "<script>alert(1)</script>",
    "a\r\nx-injected: yes",
    "true",
    "null",
    "-1",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "NaN",
    "0:18446744073709551615",
    "65535:1",
    "0:0",
    "evt_ord_18446744073709551615",
    "evt_1",
    "9999-12-31T23:59:59-23:59",
    "0000-01-01T00:00:00+23:59",
    "2026-02-30T00:00:00Z",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "order-00000000-0000-7000-8000-000000000000",
    "ORD-20261120-000000000000",
    "~(a+)+$",
    "#.#.#.#",
    "*",
    "order.placed.v99999",
    "order.placed,order.paid,,",
    "me",
    "VND",
    "vnd",
    "sandbox",
    "test_pending",
    "payment_first",
    "ann@example.com",
    "\"a b\"@example.com",
    "ADMIN",
];

fn text(random: &mut StdRng) -> String {
    match random.random_range(0..20) {
        0 => "x".repeat(random.random_range(1..70_000)),
        1 => "é\u{301}".repeat(random.random_range(1..300)),
        2 => {
            let length = random.random_range(0..64);
            (0..length).filter_map(|_| char::from_u32(random.random_range(0..0x11_0000))).collect()
        }
        _ => TEXTS.choose(random).copied().unwrap_or_default().to_owned(),
    }
}

fn number(random: &mut StdRng) -> Value {
    let whole = [0, 1, -1, 2, 101, i64::MAX, i64::MIN, 1 << 53, (1 << 53) - 1, 4_294_967_296];
    match random.random_range(0..5) {
        0 => json!(1.5),
        1 => json!(1e308),
        2 => json!(u64::MAX),
        _ => json!(whole.choose(random)),
    }
}

fn value(random: &mut StdRng) -> Value {
    match random.random_range(0..12) {
        0 => Value::Null,
        1 => json!(random.random_bool(0.5)),
        2 | 3 => number(random),
        4 => json!(RAW),
        5 => {
            let depth = [1, 5, 31, 40, 120, 200].choose(random).copied().unwrap_or(1);
            (0..depth).fold(Value::Null, |inner, _| json!([inner]))
        }
        6 => {
            let depth = [1, 5, 31, 40, 120].choose(random).copied().unwrap_or(1);
            (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }))
        }
        7 => {
            let length = [0, 1, 10, 101, 500].choose(random).copied().unwrap_or(1);
            Value::Array(vec![json!({}); length])
        }
        8 => json!({}),
        _ => Value::String(text(random)),
    }
}

fn body(request: &mut Request, random: &mut StdRng) {
    if let Body::Json(json) = &mut request.body
        && random.random_bool(0.8)
    {
        return within(json, random);
    }
    if matches!(request.body, Body::None) && random.random_bool(0.7) {
        // A body where none belongs is as good as any.
        request.body = Body::Json(value(random));
        return;
    }
    let mut bytes = request.body_bytes("0");
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            // Overlong, half a character, a byte that is never one.
            4 => drop(bytes.splice(at..at, *b"\xc0\x80\xe2\x82\xff")),
            _ => {
                let copied = bytes[at..].to_vec();
                bytes.extend(copied);
            }
        }
    }
    request.body = Body::Bytes(bytes);
}

/// Changes one thing somewhere in a JSON value.
fn within(json: &mut Value, random: &mut StdRng) {
    let down = random.random_bool(0.6);
    match json {
        Value::Object(members) if !members.is_empty() => member(members, down, random),
        Value::Array(items) if !items.is_empty() && down => {
            let at = random.random_range(0..items.len());
            within(&mut items[at], random);
        }
        Value::Array(items) if !items.is_empty() => {
            let times = [0, 2, 3, 101].choose(random).copied().unwrap_or(2);
            *items = vec![items[0].clone(); times];
        }
        other => *other = value(random),
    }
}

fn member(members: &mut Map<String, Value>, down: bool, random: &mut StdRng) {
    let names: Vec<_> = members.keys().cloned().collect();
    let name = names.choose(random).cloned().unwrap_or_default();
    if down {
        return within(&mut members[&name], random);
    }
    match random.random_range(0..5) {
        0 => drop(members.remove(&name)),
        1 => drop(members.insert(text(random), value(random))),
        2 => {
            for index in 0..random.random_range(1..300) {
                members.insert(format!("extra_{index}"), json!(index));
            }
        }
        _ => members[&name] = value(random),
    }
}

/// A text as it may stand in a path or a query, by and large.
fn escaped(text: &str, random: &mut StdRng) -> String {
    let every = random.random_bool(0.2);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:,".contains(&byte);
    let write = |byte: u8| {
        if plain(byte) && !every { char::from(byte).to_string() } else { format!("%{byte:02x}") }
    };
    text.bytes().take(2_500).map(write).collect()
}

fn query(request: &mut Request, random: &mut StdRng) {
    let text = text(random);
    let value = match random.random_range(0..10) {
        0 => "%".to_owned(),
        1 => "%zz".to_owned(),
        2 => "%ff%fe".to_owned(),
        3 => "%c0%af".to_owned(),
        _ => escaped(&text, random),
    };
    let known = request.query.choose(random).cloned();
    match (random.random_range(0..6), known) {
        // Repeated, with or without another value.
        (0, Some((name, value))) => request.query.push((name, value)),
        (1, _) => request.query.push((escaped(&text, random), value)),
        (2, _) => {
            let times = random.random_range(1..400);
            request.query.extend((0..times).map(|index| (format!("q{index}"), String::new())));
        }
        (_, Some((name, _))) => {
            request.query.retain(|(other, _)| *other != name);
            request.query.push((name, value));
        }
        (_, None) => request.query.push(("limit".to_owned(), value)),
    }
}

fn path(request: &mut Request, random: &mut StdRng) {
    let mut segments: Vec<String> = request.path.split('/').map(str::to_owned).collect();
    let at = random.random_range(1..segments.len().max(2)).min(segments.len() - 1);
    match random.random_range(0..10) {
        0 => segments.insert(at, "..".to_owned()),
        1 => segments.insert(at, String::new()),
        2 => segments.push(String::new()),
        3 => segments[at] = segments[at].to_uppercase(),
        4 => {
            let odd = ["%00", "%ff", "%c0%af", "%2e%2e", "%2f", "%", ";x=1", "*", "{id}"];
            segments[at] = odd.choose(random).copied().unwrap_or("%").to_owned();
        }
        5 => drop(segments.remove(at)),
        _ => {
            let text = text(random);
            segments[at] = escaped(&text, random);
        }
    }
    request.path = segments.join("/");
    if !request.path.starts_with('/') {
        request.path.insert(0, '/');
    }
}

fn headers(request: &mut Request, random: &mut StdRng) {
    const NAMES: &[&str] = &[
        "authorization",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "prefer",
        "traceparent",
        "x-correlation-id",
        "accept",
        "content-type",
        "content-encoding",
        "origin",
        "range",
        "expect",
        "cookie",
        "x-forwarded-for",
        "accept-encoding",
        "te",
        "upgrade",
    ];
    const VALUES: &[&[u8]] = &[
        b"",
        b"*",
        b"\"",
        b"\"\"",
        b"\"1\"",
        b"W/\"1\"",
        b"\"18446744073709551616\"",
        b"\"1\", \"2\"",
        b"\xff\xfe",
        b"\xe2\x80\xae",
        b"Bearer",
        b"Bearer a.b.c",
        b"Bearer eyJhbGciOiJub25lIn0.e30.",
        b"Basic YTpi",
        b"wait=-1",
        b"wait=99999999999999999999",
        b"respond-async, wait=0",
        b"00-00000000000000000000000000000000-0000000000000000-00",
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"application/json; charset=utf-16",
        b"application/cloudevents+json",
        b"multipart/form-data; boundary=x",
        b"text/xml",
        b"gzip",
        b"identity, gzip",
        b"bytes=0-1",
        b"101-continue",
        b"h2c",
        b"null",
        b"http://evil.example.com",
    ];
    let name = NAMES.choose(random).copied().unwrap_or("accept");
    let value = match random.random_range(0..8) {
        0 => vec![b'k'; random.random_range(1..9_000)],
        1 => {
            let mut bytes = vec![0; random.random_range(0..40)];
            random.fill_bytes(&mut bytes);
            bytes.retain(|byte| *byte >= 0x20 && *byte != 0x7f);
            bytes
        }
        _ => VALUES.choose(random).map(|value| value.to_vec()).unwrap_or_default(),
    };
    match random.random_range(0..5) {
        0 => request.headers.retain(|(known, _)| known != name),
        // As well as what there is.
        1 => request.headers.push((name.to_owned(), value)),
        _ => request.set(name, value),
    }
}

fn method(request: &mut Request, random: &mut StdRng) {
    const METHODS: &[&str] = &[
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "get", "M-X",
    ];
    METHODS.choose(random).copied().unwrap_or("PUT").clone_into(&mut request.method);
}
