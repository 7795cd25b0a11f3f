//! Looking at a worker: what it is, what it holds, and how good the link to one of its addresses is.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kimi_net::{Config, Filling, LinkError, Look, MAX_FILLING, MAX_LOOKS, Observer, Status, Trust, Tuning};

/// Round trips of which the shortest counts.
const ROUND_TRIPS: usize = 5;
/// Bytes that are sent to measure a link, and received.
const PROBE_BYTES: usize = 8 << 20;
/// Time after which no more are sent.
const PROBE_TIME: Duration = Duration::from_millis(200);
/// Bytes whose time is weighed against a round trip when routes are compared: a token's hidden state and its share of
/// a prompt's.
const TYPICAL_BYTES: f64 = 256.0 * 1024.0;

/// A worker that was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its name, by its own account.
    pub node_id: String,
    /// Its release.
    pub software: String,
    /// What it says of itself.
    pub status: Status,
    /// Where it was reached.
    pub address: SocketAddr,
    /// The shortest round trip.
    pub round_trip: Duration,
    /// How far its clock is ahead of this machine's, in microseconds, give or take half a round trip.
    pub clock_ahead_micros: i64,
    /// Measured bytes a second to it and from it, where that was asked for.
    pub bandwidth: Option<Bandwidth>,
}

/// Bytes a second of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// To the worker.
    pub to: f64,
    /// From it.
    pub from: f64,
}

/// What to ask and measure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// A model whose files the worker is to look at; empty for none.
    pub model: String,
    /// Whether the bandwidth is measured: that moves up to 8 MiB each way.
    pub bandwidth: bool,
}

impl Seen {
    /// A measure of the route for comparing: seconds, less is better.
    pub fn cost(&self) -> f64 {
        let slower = self.bandwidth.map_or(f64::INFINITY, |b| b.to.min(b.from));
        let moving = if slower.is_finite() { TYPICAL_BYTES / slower.max(1.0) } else { 0.0 };
        self.round_trip.as_secs_f64() + moving
    }
}

/// Looks at the worker at an address.
///
/// # Errors
/// Why there is no link, or why it ended.
pub async fn look(
    address: SocketAddr,
    trust: &Trust,
    node_id: &str,
    question: &Question,
) -> Result<Seen, LinkError> {
    let mut observer = kimi_net::observe(address, trust, &Tuning::default(), Config::new(node_id)).await?;
    observer.ask(Look { model: question.model.clone(), ..Look::default() })?;
    let status = observer.answer().await?; // may read files
    let mut round_trip = Duration::MAX;
    let mut clock_ahead_micros = 0;
    for _ in 0..ROUND_TRIPS {
        let (sent, clock) = (Instant::now(), clock_micros());
        observer.ask(Look { filling: Filling::of(1), ..Look::default() })?;
        let answer = observer.answer().await?;
        let time = sent.elapsed();
        if time < round_trip {
            round_trip = time;
            let halfway = clock + time.as_micros() as i64 / 2;
            clock_ahead_micros =
                i64::try_from(answer.clock_micros).unwrap_or(i64::MAX).saturating_sub(halfway);
        }
    }
    let bandwidth = match question.bandwidth {
        true => Some(Bandwidth {
            to: rate(&mut observer, round_trip, MAX_FILLING, 0).await?,
            from: rate(&mut observer, round_trip, 0, MAX_FILLING).await?,
        }),
        false => None,
    };
    let (node_id, software) = (observer.peer().node_id.clone(), observer.peer().software.clone());
    observer.close().await;
    Ok(Seen { node_id, software, status, address, round_trip, clock_ahead_micros, bandwidth })
}

/// Microseconds since 1970.
fn clock_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

/// Moves blocks one way, as many at once as are allowed, and returns bytes a second.
async fn rate(
    observer: &mut Observer,
    round_trip: Duration,
    there: usize,
    back: usize,
) -> Result<f64, LinkError> {
    let blocks = PROBE_BYTES / MAX_FILLING;
    let started = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    while answered < blocks {
        while sent < blocks && sent - answered < MAX_LOOKS && (sent == 0 || started.elapsed() < PROBE_TIME) {
            observer.ask(Look {
                filling: Filling::of(there),
                reply_bytes: back as u32,
                ..Look::default()
            })?;
            sent += 1;
        }
        if answered == sent {
            break; // out of time
        }
        observer.answer().await?;
        answered += 1;
    }
    let seconds = started.elapsed().saturating_sub(round_trip).as_secs_f64().max(1e-6);
    Ok((answered * (there + back)) as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(micros: u64, rate: Option<f64>) -> Seen {
        Seen {
            node_id: "w".into(),
            software: String::new(),
            status: Status::default(),
            address: ([10, 0, 0, 2], 7).into(),
            round_trip: Duration::from_micros(micros),
            clock_ahead_micros: 0,
            bandwidth: rate.map(|rate| Bandwidth { to: rate * 2.0, from: rate }),
        }
    }

    #[test]
    fn routes_are_compared_by_what_a_token_takes() {
        // Thunderbolt before 10 gigabit Ethernet before gigabit Ethernet before Wi-Fi.
        let order = [(250, 4e9), (100, 1.1e9), (100, 117e6), (3000, 80e6)]
            .map(|(rtt, rate)| seen(rtt, Some(rate)).cost());
        assert!(order.is_sorted(), "{order:?}");
        // Without a bandwidth, the round trip decides.
        assert!(seen(100, None).cost() < seen(200, None).cost());
        // A link that loses nearly everything is not the best one for its quick pings.
        assert!(seen(50, Some(1e4)).cost() > seen(20_000, Some(100e6)).cost());
    }
}
