//! Sits before the relay and records every byte that passes, in both directions.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    task::JoinSet,
};

/// A recording proxy; dropping it ends it.
pub struct Wiretap {
    /// The port at which it stands for the relay.
    pub port: u16,
    /// Where the bytes are: each direction of a connection in pieces as they came.
    pub recording: PathBuf,
    _task: JoinSet<()>,
}

impl Wiretap {
    /// Listens on a free port and passes on to `relay_port`.
    ///
    /// # Errors
    ///
    /// If there is no free port or the recording cannot be written.
    pub async fn start(relay_port: u16, recording: PathBuf) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let file = File::create(&recording)
            .await
            .with_context(|| format!("cannot write {}", recording.display()))?;
        let file = Arc::new(Mutex::new(file));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(splice(client, relay_port, Arc::clone(&file)));
            }
        });
        Ok(Self {
            port,
            recording,
            _task: task,
        })
    }
}

async fn splice(client: TcpStream, relay_port: u16, file: Arc<Mutex<File>>) {
    let Ok(relay) = TcpStream::connect(("127.0.0.1", relay_port)).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_relay, to_relay) = relay.into_split();
    tokio::join!(
        copy(from_client, to_relay, &file),
        copy(from_relay, to_client, &file)
    );
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, file: &Mutex<File>) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..count) else {
            return;
        };
        let recorded = async {
            let mut file = file.lock().await;
            file.write_all(bytes).await?;
            file.flush().await
        };
        if recorded.await.is_err() || to.write_all(bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
