//! A link that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Hands bytes on between a coordinator and a worker. Its threads end with the test.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Nothing gets through, and nobody is told, as if a cable were pulled.
    silent: AtomicBool,
    /// Whether a connection that was there when the cable was pulled stays dead.
    generation: Mutex<u64>,
    sockets: Mutex<Vec<TcpStream>>,
    /// Bytes from the server after which nothing gets through; 0 for no limit.
    limit: AtomicU64,
    from_server: AtomicU64,
}

impl Proxy {
    pub fn to(target: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let state = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, target, state) = (client.unwrap(), target.clone(), state.clone());
                thread::spawn(move || state.serve(&client, &target));
            }
        });
        Proxy { address, shared }
    }

    /// Lets so many bytes of the server through; then nothing gets through any more, and nobody is told.
    pub fn limit(&self, bytes: u64) {
        self.shared.limit.store(bytes, Ordering::SeqCst);
    }

    /// Whether that limit is reached.
    pub fn is_at_limit(&self) -> bool {
        self.shared.from_server.load(Ordering::SeqCst) > self.shared.limit.load(Ordering::SeqCst)
    }

    /// Nothing gets through any more, and nobody is told.
    pub fn pull(&self) {
        self.shared.silent.store(true, Ordering::SeqCst);
        *self.shared.generation.lock().unwrap() += 1;
    }

    /// New connections get through again.
    pub fn plug_in(&self) {
        self.shared.silent.store(false, Ordering::SeqCst);
    }

    /// Ends all connections.
    pub fn reset(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: &TcpStream, target: &str) {
        if self.silent.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_secs(60)); // nobody answers
            return;
        }
        let Ok(server) = TcpStream::connect(target) else { return };
        let born = *self.generation.lock().unwrap();
        for socket in [client, &server] {
            socket.set_nodelay(true).unwrap();
            self.sockets.lock().unwrap().push(socket.try_clone().unwrap());
        }
        let copies = [(client, &server), (&server, client)];
        thread::scope(|scope| {
            for (from, to) in copies {
                let of_server = std::ptr::eq(from, &server);
                scope.spawn(move || self.copy(from, to, born, of_server));
            }
        });
    }

    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream, born: u64, of_server: bool) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer) {
            if *self.generation.lock().unwrap() != born {
                thread::sleep(Duration::from_secs(60)); // dead, and nobody is told
                return;
            }
            if of_server {
                let limit = self.limit.load(Ordering::SeqCst);
                let so_far = self.from_server.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
                if limit > 0 && so_far > limit {
                    thread::sleep(Duration::from_secs(60));
                    return;
                }
            }
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
