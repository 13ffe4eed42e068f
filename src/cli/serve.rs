//! `souk serve`: until somebody says stop.

use std::process::ExitCode;

use crate::config::Config;
use crate::serve::Running;

pub(super) async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mode = config.mode;
    let running = Running::start(config).await?;
    println!("souk is listening on {} ({})", running.url(), mode.as_str());
    if let Some(path) = running.admin_token_path() {
        println!("an administrator's token is in {}", path.display());
    }
    let failed = tokio::select! {
        signal = stop_signal() => {
            tracing::info!(signal = signal?, "stopping");
            false
        }
        reason = running.fatal() => {
            tracing::error!(reason, "stopping: something failed that cannot be restarted");
            true
        }
    };
    let finished = match failed {
        true => running.give_up().await,
        false => running.stop().await,
    };
    Ok(if failed || !finished { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Resolves when the process is asked to stop.
#[cfg(unix)]
async fn stop_signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(not(unix))]
async fn stop_signal() -> std::io::Result<&'static str> {
    tokio::signal::ctrl_c().await.map(|()| "Ctrl-C")
}
