//! Network weather: a proxy that delays, limits, stalls, freezes and cuts what passes.
//!
//! It stands for a bad network where `tc netem` is not to be had: netem is a module that many
//! kernels lack, and needs root or a user namespace. TCP turns a lost segment into a delay of it
//! and of all that follow, so that is what a loss is here; congestion control is not imitated.

mod lane;

use std::time::Duration;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use lane::Lane;

/// What a network does to each direction of each connection.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// From one end to the other: half a round trip.
    pub delay: Duration,
    /// A segment comes up to so much later.
    pub jitter: Duration,
    /// The slowest part of the way; `None`: no limit.
    pub bytes_per_second: Option<u32>,
    /// Of 1000 segments so many are lost and sent again.
    pub lost_per_mille: u16,
}

impl Weather {
    /// Nothing in the way.
    pub const FAIR: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_second: None,
        lost_per_mille: 0,
    };

    /// A geostationary satellite: 600 ms there and back, 2 % loss.
    pub const SATELLITE: Self = Self {
        delay: Duration::from_millis(300),
        lost_per_mille: 20,
        ..Self::FAIR
    };

    /// A mobile network of the third generation: 150 ms there and back with jitter, 1 Mbit/s, 1 %
    /// loss.
    pub const MOBILE: Self = Self {
        delay: Duration::from_millis(75),
        jitter: Duration::from_millis(40),
        bytes_per_second: Some(125_000),
        lost_per_mille: 10,
    };

    /// How much later a lost segment comes: one retransmission timeout (RFC 6298, with Linux's
    /// least variance of 200 ms).
    fn loss_delay(&self) -> Duration {
        self.delay * 2 + self.jitter + Duration::from_millis(200)
    }
}

/// How the network is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outlook {
    /// Everything passes, as the [`Weather`] allows.
    #[default]
    Open,
    /// Nothing passes, and nobody is told: a peer that vanished, a cable that was pulled.
    Frozen,
    /// Connections are refused, and those that were open are reset.
    Down,
}

/// A network between those who connect to its port and whoever listens behind it. Dropping it cuts
/// everything.
pub struct Network {
    /// Where it is entered.
    pub port: u16,
    outlook: watch::Sender<Outlook>,
    _task: JoinSet<()>,
}

impl Network {
    /// Opens an entrance to `behind`, a port of this machine. `seed` decides which segments are
    /// lost.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn start(behind: u16, weather: Weather, seed: u64) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let outlook = watch::Sender::new(Outlook::Open);
        let changes = outlook.subscribe();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            let mut seed = seed;
            while let Ok((client, _)) = listener.accept().await {
                seed = seed.wrapping_add(1);
                connections.spawn(connection(client, behind, weather, seed, changes.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            port,
            outlook,
            _task: task,
        })
    }

    /// Changes how the network is, for open connections too.
    pub fn turn(&self, outlook: Outlook) {
        self.outlook.send_replace(outlook);
    }
}

async fn connection(
    client: TcpStream,
    behind: u16,
    weather: Weather,
    seed: u64,
    mut outlook: watch::Receiver<Outlook>,
) {
    let down = outlook.clone();
    let passing = async {
        // What comes while the network is frozen waits like a SYN that is sent again.
        let open = |outlook: &Outlook| *outlook == Outlook::Open;
        outlook.wait_for(open).await.ok()?;
        let server = TcpStream::connect(("127.0.0.1", behind)).await.ok()?;
        client.set_nodelay(true).ok()?;
        server.set_nodelay(true).ok()?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let lane = |part| Lane::new(weather, seed.wrapping_mul(2) + part, outlook.clone());
        tokio::join!(
            lane(0).carry(from_client, to_server),
            lane(1).carry(from_server, to_client)
        );
        Some(())
    };
    tokio::select! {
        _ = passing => {}
        () = is_down(down) => {}
    }
}

async fn is_down(mut outlook: watch::Receiver<Outlook>) {
    // An error means that the network is gone, and with it everything that it carries.
    let _ = outlook.wait_for(|outlook| *outlook == Outlook::Down).await;
}

/// A generator of numbers that looks random and repeats with its seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The generator stays at zero, and near seeds begin alike.
        let mut dice = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            dice.below(2);
        }
        dice
    }

    /// A number from 0 to `bound` - 1; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        drawn.checked_rem(bound).unwrap_or(0)
    }
}

/// A seed that is printed, so that a schedule that failed can be had again with `SEED=`.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since.map_or(1, |since| u64::from(since.subsec_nanos()))
    })
}
