//! One connection: which version of HTTP it speaks, how long it may be silent, and how long it may
//! leave an answer unread.
//!
//! HTTP/1 is bounded by hyper's timer of the request's head, which runs between requests too.
//! HTTP/2 has no such timer: a peer that answers pings could stay for good, so a connection without
//! an open request is told to go. What nobody reads is bounded for both by [`Impatient`], which also
//! closes slowly enough that nobody loses an answer by still talking (RFC 9112 §9.6).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

/// What every HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait at first for more of what may become the preface; doubled each time, so that
/// many who send its first letter only do not keep the machine busy.
const PEEK_PAUSE: Duration = Duration::from_millis(10);
/// How long at most.
const PEEK_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A client that has said something within so long may still be talking when the connection is
/// closed: to close it at once would reset it, and take away an answer that is not read yet.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How long such a client is listened to, and to how much, before it is cut off.
const LINGER_FOR: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Which version of HTTP a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/1.0 or 1.1.
    One,
    /// HTTP/2 from the first byte.
    Two,
}

/// The version of HTTP that a connection begins to speak in time. Hyper's own timers start only
/// once it knows, so that silence, or the first letter of `POST` and of HTTP/2's preface, would hold
/// a connection for good.
pub(super) async fn version(
    stream: &TcpStream,
    within: Duration,
    ending: &mut watch::Receiver<()>,
) -> Option<Version> {
    let spoken = async {
        let mut start = [0; PREFACE.len()];
        let mut pause = PEEK_PAUSE;
        loop {
            match stream.peek(&mut start).await {
                Ok(0) | Err(_) => return None,
                Ok(length) if !PREFACE.starts_with(&start[..length]) => return Some(Version::One),
                Ok(length) if length == start.len() => return Some(Version::Two),
                Ok(_) => {
                    tokio::time::sleep(pause).await;
                    pause = PEEK_PAUSE_MAX.min(pause * 2);
                }
            }
        }
    };
    tokio::select! {
        biased;
        spoken = tokio::time::timeout(within, spoken) => spoken.unwrap_or(None),
        _ = ending.changed() => None,
    }
}

/// What is under way on a connection.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Activity {
    /// Counts a request as open for as long as the result lives.
    pub(super) fn request(self: &Arc<Self>) -> OpenRequest {
        self.begun.fetch_add(1, Ordering::Relaxed);
        OpenRequest(self.clone())
    }

    /// How many requests there have been, if none is open.
    fn at_rest(&self) -> Option<u64> {
        // In this order: a request that ends in between is then still seen as open.
        let ended = self.ended.load(Ordering::Acquire);
        (self.begun.load(Ordering::Relaxed) == ended).then_some(ended)
    }
}

/// See [`Activity::request`]. A request carries it among its extensions, for answers that go on after
/// they have begun.
#[derive(Debug)]
pub(super) struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

/// Waits until an HTTP/2 connection has had no request open, and no new one, for `within`.
pub(super) async fn idle(activity: &Activity, within: Duration) {
    let mut before = None;
    loop {
        tokio::time::sleep(within).await;
        let now = activity.at_rest();
        if now.is_some() && now == before {
            return;
        }
        before = now;
    }
}

/// Drives a connection to its end. When the server ends or `leave` is over it is asked to finish;
/// what is open then may, within `grace` of the latter.
pub(super) async fn drive<C: Future>(
    connection: C,
    ask_to_finish: fn(Pin<&mut C>),
    mut ending: watch::Receiver<()>,
    leave: impl Future<Output = ()>,
    grace: Duration,
) -> Option<C::Output> {
    let (mut connection, mut leave) = (pin!(connection), pin!(leave));
    let mut ended = pin!(ending.changed());
    let (mut asked, mut cut) = (false, None::<Pin<Box<Sleep>>>);
    poll_fn(|context| {
        if let Poll::Ready(output) = connection.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        if !asked && ended.as_mut().poll(context).is_ready() {
            asked = true;
            ask_to_finish(connection.as_mut());
            context.waker().wake_by_ref();
        }
        match &mut cut {
            Some(cut) => cut.as_mut().poll(context).map(|()| None),
            None => {
                if leave.as_mut().poll(context).is_ready() {
                    ask_to_finish(connection.as_mut());
                    asked = true;
                    cut = Some(Box::pin(tokio::time::sleep(grace)));
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    })
    .await
}

/// A stream whose writes fail when the other side takes nothing for `patience`, and which lingers
/// when it is shut down while the other side talks.
pub(super) struct Impatient {
    stream: TcpStream,
    patience: Duration,
    until: Option<Pin<Box<Sleep>>>,
    heard: Option<Instant>,
    linger: Option<Linger>,
}

/// The end of a connection whose other side may still be talking.
struct Linger {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Impatient {
    /// `stream`, whose reader must go on within `patience`.
    pub(super) fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, until: None, heard: None, linger: None }
    }

    /// Reads on and forgets what it reads, until the other side is done or it has been long enough.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(linger) = &mut self.linger else { return Poll::Ready(()) };
        let mut bytes = [0; 4096];
        while linger.bytes > 0 {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    linger.bytes = linger.bytes.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.until.as_mut().poll(context),
            }
        }
        Poll::Ready(())
    }

    /// What a write came to, or that it has waited for too long.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let patience = self.patience;
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads the answer")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.heard = Some(Instant::now());
        }
        read
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let shut = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.bounded(context, shut))?;
            if self.heard.is_none_or(|heard| heard.elapsed() > HEARD_WITHIN) {
                return Poll::Ready(Ok(()));
            }
            let until = Box::pin(tokio::time::sleep(LINGER_FOR));
            self.linger = Some(Linger { until, bytes: LINGER_BYTES });
        }
        self.poll_linger(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (ours.unwrap().0, theirs.unwrap())
    }

    async fn spoken(bytes: &[u8]) -> Option<Version> {
        let (ours, mut theirs) = pair().await;
        theirs.write_all(bytes).await.unwrap();
        let (_open, mut ending) = watch::channel(());
        version(&ours, Duration::from_millis(100), &mut ending).await
    }

    #[tokio::test]
    async fn a_connection_says_in_time_what_it_speaks() {
        assert_eq!(spoken(b"GET / HTTP/1.1\r\n").await, Some(Version::One));
        assert_eq!(spoken(b"\x16\x03\x01").await, Some(Version::One));
        assert_eq!(spoken(PREFACE).await, Some(Version::Two));
        for undecided in [&b""[..], b"P", &PREFACE[..23]] {
            assert_eq!(spoken(undecided).await, None);
        }
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_written_for_ever() {
        let (ours, theirs) = pair().await;
        let mut ours = Impatient::new(ours, Duration::from_millis(50));
        let chunk = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = ours.write_all(&chunk).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn whoever_reads_on_gets_everything() {
        let (ours, mut theirs) = pair().await;
        let mut ours = Impatient::new(ours, Duration::from_secs(5));
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.map(|_| all.len())
        });
        ours.write_all(&vec![7; 8 << 20]).await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), 8 << 20);
    }

    #[tokio::test]
    async fn whoever_is_still_talking_gets_the_answer_too() {
        let (ours, mut theirs) = pair().await;
        let mut ours = Impatient::new(ours, Duration::from_secs(5));
        theirs.write_all(b"the beginning").await.unwrap();
        let answering = tokio::spawn(async move {
            ours.read_exact(&mut [0; 13]).await.unwrap();
            ours.write_all(b"the answer").await.unwrap();
            ours.shutdown().await
        });
        // The answer is there, and this side has not done yet.
        theirs.peek(&mut [0; 1]).await.unwrap();
        for _ in 0..64 {
            theirs.write_all(&[0; 1024]).await.unwrap();
        }
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"the answer");
        drop(theirs);
        answering.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn but_not_whoever_talks_for_ever_or_says_nothing_any_more() {
        let (ours, mut theirs) = pair().await;
        let mut ours = Impatient::new(ours, Duration::from_secs(5));
        theirs.write_all(b"the beginning").await.unwrap();
        let talking =
            tokio::spawn(async move { while theirs.write_all(&[0; 1024]).await.is_ok() {} });
        ours.read_exact(&mut [0; 13]).await.unwrap();
        ours.shutdown().await.unwrap();
        drop(ours);
        talking.await.unwrap();
        let (ours, mut theirs) = pair().await;
        let mut ours = Impatient::new(ours, Duration::from_secs(5));
        theirs.write_all(b"the beginning").await.unwrap();
        ours.read_exact(&mut [0; 13]).await.unwrap();
        ours.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_without_open_requests() {
        let activity = Arc::new(Activity::default());
        let within = Duration::from_secs(10);
        let open = activity.request();
        let waited = tokio::time::timeout(within * 5, idle(&activity, within)).await;
        assert!(waited.is_err(), "a request is open");
        drop(open);
        let waited = tokio::time::timeout(within * 5, idle(&activity, within)).await;
        assert!(waited.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_finish_when_asked_is_cut_off() {
        let (_open, ending) = watch::channel(());
        let never = std::future::pending::<()>();
        let left = tokio::time::sleep(Duration::from_secs(1));
        let driven = drive(never, |_| (), ending, left, Duration::from_secs(3)).await;
        assert_eq!(driven, None);
    }
}
