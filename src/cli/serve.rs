//! `souk serve`: until somebody says stop.

use std::fmt;
use std::process::ExitCode;

use crate::config::{Config, LogTo};
use crate::serve::Running;

pub(super) async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let (mode, log_to) = (config.mode, config.log_to);
    let running = Running::start(config).await?;
    // Whoever reads the next line may ask it to stop: by then it must listen to that too.
    let asked_to_stop = stop_signal()?;
    say(log_to, format_args!("souk is listening on {} ({})", running.url(), mode.as_str()));
    if let Some(path) = running.admin_token_path() {
        say(log_to, format_args!("an administrator's token is in {}", path.display()));
    }
    let failed = tokio::select! {
        signal = asked_to_stop => {
            tracing::info!(signal, "stopping");
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

/// Tells people something where the log is not.
fn say(log_to: LogTo, what: fmt::Arguments<'_>) {
    match log_to {
        LogTo::StandardError => println!("{what}"),
        LogTo::StandardOutput => eprintln!("{what}"),
    }
}

/// Listens from now on; resolves when the process is asked to stop.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> std::io::Result<impl Future<Output = &'static str>> {
    Ok(async {
        // Without a way to hear of it nobody can ask.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    })
}
