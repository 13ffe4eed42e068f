//! HTTP/2 frames by hand.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// One frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
}

/// A connection that has sent its preface and empty settings.
pub async fn connect(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let start = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, b"")];
    stream.write_all(&start.concat()).await.unwrap();
    stream
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `GET <path>`, whole, as HEADERS that end both themselves and the stream.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    // Indexed method and scheme, path and authority as literals (RFC 7541 §6).
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend([0x01, 9]);
    block.extend(b"localhost");
    frame(1, 0x05, stream, &block)
}

/// The same of somebody with a token.
pub fn get_as(stream: u32, path: &str, token: &str) -> Vec<u8> {
    let mut request = get(stream, path);
    let value = format!("Bearer {token}");
    // `authorization` is the name 23 of the static table; lengths from 127 on take more bytes
    // (RFC 7541 §5.1).
    let mut rest = value.len() - 127;
    let mut field = vec![0x0f, 23 - 15, 0x7f];
    while rest >= 128 {
        field.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    field.push(u8::try_from(rest).unwrap());
    field.extend(value.bytes());
    let block = [&request.split_off(9)[..], &field].concat();
    frame(1, 0x05, stream, &block)
}

/// The next frame; `None` when the other side has closed.
pub async fn next(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind: head[3], flags: head[4], payload })
}

/// Reads to the end of the connection, answering pings as a polite peer does. Returns the kinds of
/// the frames that came.
pub async fn read_politely(stream: &mut TcpStream) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some(got) = next(stream).await {
        if got.kind == PING && got.flags & ACK == 0 {
            let pong = frame(PING, ACK, 0, &got.payload);
            // It may be closing already.
            let _: std::io::Result<()> = stream.write_all(&pong).await;
        }
        kinds.push(got.kind);
    }
    kinds
}
