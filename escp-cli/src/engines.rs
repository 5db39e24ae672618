//! Which engine this host uses: the daemon's where one answers, else one in this process.

use escp_agent::link::SessionError;
use escp_agent::status;
use escp_config::Config;
use escp_engine::Host;
use escp_engine_api::EngineHandle;
use escp_ipc::ConnectError;
use std::ffi::OsString;
use std::path::PathBuf;

/// Name of a socket that stands for doing without a daemon.
const NO_DAEMON: &str = "none";
/// Where the environment names the socket.
pub(crate) const SOCKET_VARIABLE: &str = "ESCP_SOCKET";

/// The daemon's socket: that of the command line, else of the environment, else of the configuration.
/// `None`: use no daemon.
pub(crate) fn socket(flag: Option<PathBuf>, variable: Option<OsString>, config: &Config) -> Option<PathBuf> {
    let variable = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = flag.or(variable).unwrap_or_else(|| config.socket.clone());
    (path.as_os_str() != NO_DAEMON).then_some(path)
}

/// Connects to the daemon at `socket`, or starts an embedded engine and says why.
///
/// # Errors
/// Status 3 when the daemon turned the session away: an embedded engine would only dodge its limits.
pub(crate) async fn open(socket: Option<PathBuf>) -> Result<EngineHandle, SessionError> {
    let Some(path) = socket else {
        tracing::info!("no escpd wanted: embedded engine");
        return Ok(embedded());
    };
    match escp_ipc::connect(&path).await {
        Ok(handle) => Ok(handle),
        Err(ConnectError::Refused(why)) => {
            Err(SessionError { status: status::CONNECT, text: format!("escpd of this host: {why}") })
        }
        Err(error @ (ConnectError::Absent { .. } | ConnectError::Permission { .. })) => {
            tracing::info!("{error}: embedded engine");
            Ok(embedded())
        }
        Err(error @ (ConnectError::Version { .. } | ConnectError::Broken { .. })) => {
            tracing::warn!("{error}: embedded engine");
            Ok(embedded())
        }
    }
}

fn embedded() -> EngineHandle {
    // Registered buffers count as locked memory. With less than wanted the engine does without.
    if let Err(error) = escp_sys::process::raise_locked_memory_limit() {
        tracing::debug!("the limit of locked memory stays as it is: {error}");
    }
    escp_engine::spawn(Host::embedded())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_outweighs_the_environment_and_that_the_configuration() {
        let config = Config::default();
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(socket(path("/a"), Some("/b".into()), &config), path("/a"));
        assert_eq!(socket(None, Some("/b".into()), &config), path("/b"));
        assert_eq!(socket(None, Some("".into()), &config), path("/run/escp/escpd.sock"));
        assert_eq!(socket(None, None, &config), path("/run/escp/escpd.sock"));
        assert_eq!(socket(path("none"), Some("/b".into()), &config), None);
    }

    #[tokio::test]
    async fn without_a_daemon_there_is_an_embedded_engine() {
        let directory = tempfile::tempdir().unwrap();
        assert!(open(Some(directory.path().join("absent"))).await.is_ok());
        assert!(open(None).await.is_ok());
    }
}
