//! A way to a server that breaks on request, in the middle of what is asked.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What still gets through before the connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The request: the server works on it, and nobody hears of it.
    Request,
    /// The request, and the server's answer is waited for: what was asked is done.
    Answer,
}

type Plan = Arc<Mutex<Option<(Vec<u8>, Cut)>>>;

/// See the module. It ends with the test process.
pub struct Proxy {
    port: u16,
    plan: Plan,
}

impl Proxy {
    /// Stands before this port of the loopback interface.
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Plan::default();
        let cuts = plan.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let plan = cuts.clone();
                std::thread::spawn(move || carry(client, server, &plan));
            }
        });
        Self { port, plan }
    }

    /// The same address by way of the proxy.
    pub fn url(&self, url: &str) -> String {
        let (before, after) = url.rsplit_once(':').unwrap();
        let (_, database) = after.split_once('/').unwrap();
        format!("{before}:{}/{database}", self.port)
    }

    /// Breaks the next connection on which these bytes are sent to the server.
    pub fn cut_next(&self, at: &str, cut: Cut) {
        *self.plan.lock().unwrap() = Some((at.as_bytes().to_vec(), cut));
    }

    /// Whether everything that was to be cut is cut.
    pub fn idle(&self) -> bool {
        self.plan.lock().unwrap().is_none()
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Carries bytes both ways, until one side ends or the plan says so.
fn carry(mut client: TcpStream, mut server: TcpStream, plan: &Plan) {
    let cut = Arc::new(Mutex::new(None));
    let answers = {
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let cut = cut.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if cut.lock().unwrap().is_some() || to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        let bytes = &buffer[..count];
        let planned = {
            let mut plan = plan.lock().unwrap();
            if plan.as_ref().is_some_and(|(at, _)| contains(bytes, at)) {
                plan.take()
            } else {
                None
            }
        };
        *cut.lock().unwrap() = planned.as_ref().map(|(_, cut)| *cut);
        if server.write_all(bytes).is_err() {
            break;
        }
        match planned {
            // The server's side stays open: its session goes on with what it was asked.
            Some((_, Cut::Request)) => {
                let _ = client.shutdown(Shutdown::Both);
                let _ = answers.join();
                return;
            }
            Some((_, Cut::Answer)) => {
                let _ = answers.join();
                let _ = server.shutdown(Shutdown::Both);
                return;
            }
            None => {}
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = answers.join();
}
