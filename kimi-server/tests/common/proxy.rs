//! A link that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
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
                scope.spawn(move || self.copy(from, to, born));
            }
        });
    }

    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream, born: u64) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer) {
            if *self.generation.lock().unwrap() != born {
                thread::sleep(Duration::from_secs(60)); // dead, and nobody is told
                return;
            }
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
