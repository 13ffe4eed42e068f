//! Bytes that are no request: what comes before HTTP can even say which one is meant.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _};

use super::request::Request;

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Something that is broken as a message, made from a request that is not.
pub fn broken(request: &Request, random: &mut StdRng) -> Vec<u8> {
    let head = request.head();
    let body = request.body_bytes("0");
    let with = |more: &[u8]| [head.as_slice(), more].concat();
    match random.random_range(0..16) {
        0 => with(b"content-length: 1000000\r\n\r\n{\"a\":"),
        1 => with(b"content-length: 5\r\ncontent-length: 6\r\n\r\n{\"a\":1}"),
        2 => with(b"content-length: -1\r\n\r\n{}"),
        3 => with(b"content-length: 99999999999999999999999\r\n\r\n{}"),
        4 => with(b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n"),
        5 => with(b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        6 => with(b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        7 => with(b"transfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nx: y\r\n\r\n"),
        8 => with(b"transfer-encoding: gzip\r\n\r\n{}"),
        9 => with(b"no colon here\r\n\r\n"),
        10 => with(b"x: a\r\n folded\r\n\r\n"),
        11 => {
            let mut bytes = [request.bytes("0"), body].concat();
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
            bytes.truncate(random.random_range(1..=bytes.len()));
            bytes
        }
        12 => {
            let lines = random.random_range(101..400);
            let many: String = (0..lines).map(|index| format!("x-{index}: y\r\n")).collect();
            with(format!("{many}\r\n").as_bytes())
        }
        13 => with(format!("x-long: {}\r\n\r\n", "y".repeat(70_000)).as_bytes()),
        14 => http2(random),
        _ => {
            let mut bytes = vec![0; random.random_range(1..2_000)];
            random.fill_bytes(&mut bytes);
            bytes
        }
    }
}

/// An HTTP/2 connection's beginning, and frames that need not make sense.
fn http2(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = PREFACE[..random.random_range(1..=PREFACE.len())].to_vec();
    if bytes.len() == PREFACE.len() {
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    }
    for _ in 0..random.random_range(0..50) {
        let kind = [0_u8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255].choose(random).copied().unwrap_or(0);
        let length: u8 = random.random_range(0..40);
        bytes.extend([0, 0, length, kind, random.random(), 0, 0, 0, random.random_range(0..8)]);
        let mut payload = vec![0; usize::from(length)];
        random.fill_bytes(&mut payload);
        bytes.extend(payload);
    }
    bytes
}
