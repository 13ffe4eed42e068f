//! Server-sent events, as the service sends them: read from pieces as they come, within bounds.

use anyhow::{bail, ensure};

/// The longest event that is read, with everything that belongs to it.
const BYTES_MAX: usize = 8 << 20;

/// What was told, up to an empty line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Where the stream is behind it.
    pub(super) id: Option<String>,
    /// What happened; none when only the place was told.
    pub(super) data: Option<String>,
}

/// Puts pieces together.
#[derive(Default)]
pub(super) struct Reader {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    told: Told,
    /// How much has come since the last empty line.
    bytes: usize,
}

impl Reader {
    /// What a piece brings to its end.
    pub(super) fn read(&mut self, piece: &[u8]) -> anyhow::Result<Vec<Told>> {
        let mut all = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.bytes += part.len();
            ensure!(
                self.bytes <= BYTES_MAX,
                "the stream told an event of more than {BYTES_MAX} bytes"
            );
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                all.extend(self.line_of(&line)?);
            }
        }
        Ok(all)
    }

    fn line_of(&mut self, line: &[u8]) -> anyhow::Result<Option<Told>> {
        let Ok(line) = str::from_utf8(line) else { bail!("the stream is not UTF-8") };
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            self.bytes = 0;
            let told = std::mem::take(&mut self.told);
            return Ok((told != Told::default()).then_some(told));
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.told.id = Some(value.to_owned()),
            "data" => match &mut self.told.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.told.data = Some(value.to_owned()),
            },
            // The type is in the data too; the rest is for browsers, or a comment.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 3000\nid: a\n\n: still here\n\nid: b\nevent: x\ndata: {\"ü\":1}\n\n\
                          id:c\r\ndata: one\r\ndata: two\r\n\r\ndata: not over";

    fn told(id: Option<&str>, data: Option<&str>) -> Told {
        Told { id: id.map(str::to_owned), data: data.map(str::to_owned) }
    }

    #[test]
    fn pieces_of_any_size_tell_the_same() {
        let expected = [
            told(Some("a"), None),
            told(Some("b"), Some("{\"ü\":1}")),
            told(Some("c"), Some("one\ntwo")),
        ];
        for size in 1..=STREAM.len() {
            let mut reader = Reader::default();
            let pieces = STREAM.as_bytes().chunks(size);
            let all: Vec<_> = pieces.flat_map(|piece| reader.read(piece).unwrap()).collect();
            assert_eq!(all, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let mut reader = Reader::default();
        let piece = vec![b'x'; 1 << 20];
        let all: Vec<_> = (0..9).map(|_| reader.read(&piece)).collect();
        assert!(all[..8].iter().all(|read| read.as_ref().is_ok_and(Vec::is_empty)));
        let refused = all[8].as_ref().unwrap_err().to_string();
        assert!(refused.contains("more than"), "{refused}");
        // Many short lines are no way around it.
        let mut reader = Reader::default();
        let piece = b"data: x\n".repeat(1 << 17);
        assert!((0..9).any(|_| reader.read(&piece).is_err()));
    }
}
