//! Hosts joined by cables that delay, lose, repeat and reorder packets: network namespaces, and between them a program that
//! hands packets from one TUN device to another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::hosts::ip;

/// What a cable does to packets, in each direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cable {
    pub delay: Duration,
    /// Of a thousand packets.
    pub lost: u32,
    /// Of a thousand packets.
    pub repeated: u32,
    /// Of a thousand packets: they come 3 ms later than they should.
    pub late: u32,
}

/// A coordinator's host, and worker's hosts with a cable each to it. They are gone when it is dropped.
pub struct Hosts {
    id: String,
    workers: usize,
}

impl Hosts {
    /// `None`, with a word, where that can't be made; it takes root and TUN devices.
    pub fn new(test: &str, workers: usize, cable: Cable) -> Option<Hosts> {
        let hosts = Hosts { id: format!("{test}{}", std::process::id()), workers };
        if hosts.make(cable).is_none() {
            println!("skipped: network namespaces with TUN devices can't be made here");
            return None;
        }
        Some(hosts)
    }

    fn make(&self, cable: Cable) -> Option<()> {
        let up = |ok: bool| ok.then_some(());
        for host in 0..=self.workers {
            up(ip(&format!("netns add {}", self.name(host))))?;
            up(ip(&format!("-n {} link set lo up", self.name(host))))?;
        }
        for worker in 1..=self.workers {
            let near = tun(&self.name(0), &format!("to{worker}"), &format!("10.99.{worker}.1"))?;
            let far = tun(&self.name(worker), "up", &Self::address(worker))?;
            let (near_again, far_again) = (near.try_clone().ok()?, far.try_clone().ok()?);
            carry(near, far_again, cable, worker as u64);
            carry(far, near_again, cable, 100 + worker as u64);
        }
        Some(())
    }

    /// Host 0 is the coordinator's.
    pub fn name(&self, host: usize) -> String {
        format!("{}h{host}", self.id)
    }

    /// A worker's address.
    pub fn address(worker: usize) -> String {
        format!("10.99.{worker}.2")
    }

    /// Does something on a host: threads that it starts are there too.
    pub fn on<T: Send + 'static>(&self, host: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
        let name = self.name(host);
        let there = thread::spawn(move || enter(&name).map(|()| work()));
        there.join().expect("it panicked").expect("the namespace is gone")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in 0..=self.workers {
            ip(&format!("netns delete {}", self.name(host)));
        }
    }
}

/// Moves this thread into a namespace.
fn enter(name: &str) -> Option<()> {
    let namespace = File::open(format!("/run/netns/{name}")).ok()?;
    // SAFETY: it takes two numbers, and changes nothing but this thread's network.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    (result == 0).then_some(())
}

/// A TUN device in a namespace, with an address and a route to the others of its /24.
fn tun(namespace: &str, device: &str, address: &str) -> Option<File> {
    let (inside, name) = (namespace.to_owned(), CString::new(device).ok()?);
    let open = move || {
        enter(&inside)?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").ok()?;
        // SAFETY: a struct of numbers, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the call reads and writes the struct, which outlives it.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        (result == 0).then_some(file)
    };
    let file = thread::spawn(open).join().ok()??;
    let done = ip(&format!("-n {namespace} addr add {address}/24 dev {device}"))
        && ip(&format!("-n {namespace} link set dev {device} mtu 1500 up"));
    done.then_some(file)
}

/// A number that looks random, the same in every run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Carries packets from one device to another, until one of them is gone.
fn carry(mut from: File, mut to: File, cable: Cable, seed: u64) {
    let (sender, packets) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 2048];
        while let Ok(count) = from.read(&mut buffer) {
            if sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        let mut state = seed;
        let mut chance = move |of_a_thousand| next(&mut state) % 1000 < u64::from(of_a_thousand);
        let mut waiting = BinaryHeap::new();
        let mut count = 0_u64;
        loop {
            let pause = waiting.peek().map_or(
                Duration::from_secs(1),
                |Reverse((due, ..)): &Reverse<(Instant, u64, Vec<u8>)>| {
                    due.saturating_duration_since(Instant::now())
                },
            );
            match packets.recv_timeout(pause) {
                Ok((at, packet)) if !chance(cable.lost) => {
                    let late = if chance(cable.late) { Duration::from_millis(3) } else { Duration::ZERO };
                    for _ in 0..if chance(cable.repeated) { 2 } else { 1 } {
                        count += 1;
                        waiting.push(Reverse((at + cable.delay + late, count, packet.clone())));
                    }
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
                let Some(Reverse((.., packet))) = waiting.pop() else { break };
                // An error: the device is not up, as a cable that was pulled.
                let _ = to.write_all(&packet);
            }
        }
    });
}
