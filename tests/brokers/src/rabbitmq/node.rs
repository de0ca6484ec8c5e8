//! A broker's folders, ports and files, whether it runs or not: [`Node`].
//!
//! Paths are as the broker sees them, which may be inside of another system's root.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::apps;
use super::builder::Builder;
use super::series::Installation;
use crate::StartError;
use crate::ports::Port;
use crate::tls;

/// What is not shared with any other node needs no secret.
const COOKIE: &str = "millstream";

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) installation: Installation,
    data: TempDir,
    pub(crate) amqp: Port,
    pub(crate) amqps: Option<Port>,
    pub(crate) management: Option<Port>,
    /// Where Erlang nodes talk to each other.
    erlang: Port,
}

impl Node {
    pub(crate) fn new(builder: &Builder) -> Result<Self, StartError> {
        let installation = builder.series.installation()?;
        let folder = if installation.elsewhere() {
            installation.root.join("tmp")
        } else {
            std::env::temp_dir()
        };
        let data = tempfile::Builder::new()
            .prefix("millstream-rabbitmq-")
            .tempdir_in(&folder)
            .map_err(StartError::io(format!("make a folder in {}", folder.display())))?;
        let port = || Port::free().map_err(StartError::io("find a free port"));
        let node = Self {
            installation,
            data,
            amqp: port()?,
            amqps: builder.tls.then(port).transpose()?,
            management: builder.management.then(port).transpose()?,
            erlang: port()?,
        };
        node.write(builder)
            .map_err(StartError::io(format!("fill {}", node.data.path().display())))?;
        Ok(node)
    }

    /// Its name among Erlang nodes.
    pub(crate) fn name(&self) -> String {
        format!("rabbit{}@localhost", self.amqp.number())
    }

    /// Where all its own is, for this process.
    pub(crate) fn folder(&self) -> &Path {
        self.data.path()
    }

    /// Where this file of its own is, for this process.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// What it logs.
    pub(crate) fn log(&self) -> PathBuf {
        self.file("log").join(format!("{}.log", self.name()))
    }

    /// What it prints.
    pub(crate) fn printed(&self) -> PathBuf {
        self.file("printed")
    }

    /// Where this file of its own is, for the broker.
    fn inside(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        match path.strip_prefix(&self.installation.root) {
            Ok(path) => Path::new("/").join(path),
            Err(_) => path,
        }
    }

    fn write(&self, builder: &Builder) -> io::Result<()> {
        fs::create_dir(self.file("apps"))?;
        let mut wanted = vec!["rabbit", "rabbitmq_prelaunch"];
        let mut plugins = "";
        if builder.management {
            plugins = "rabbitmq_management";
            wanted.push(plugins);
        }
        apps::link(&self.installation, &self.file("apps"), &wanted)?;
        fs::write(self.file("plugins"), format!("[{plugins}].\n"))?;
        if builder.tls {
            tls::write(self.folder())?;
        }
        // No name but its own: a name server that does not answer would hold a start for seconds.
        fs::write(
            self.file("inetrc"),
            "{host, {127,0,0,1}, [\"localhost\"]}.\n{lookup, [file]}.\n",
        )?;
        fs::write(self.file("rabbitmq.conf"), self.conf(builder))?;
        // Deliveries are looked at for their age at each tick of their channel, and the tick has no line in the conf.
        let advanced = match builder.consumer_timeout {
            Some(_) => "[{rabbit, [{channel_tick_interval, 1000}]}].\n",
            None => "[].\n",
        };
        fs::write(self.file("advanced.config"), advanced)
    }

    fn conf(&self, builder: &Builder) -> String {
        let mut lines: Vec<(&str, String)> = vec![
            ("listeners.tcp.local", format!("127.0.0.1:{}", self.amqp.number())),
            // In another system's root there may be no /proc to read the memory from.
            ("vm_memory_calculation_strategy", "allocated".to_owned()),
            ("total_memory_available_override_value", "4GB".to_owned()),
            ("vm_memory_high_watermark.absolute", "1GB".to_owned()),
            ("disk_free_limit.absolute", "10MB".to_owned()),
        ];
        if let Some(port) = &self.amqps {
            let file = |name| self.inside(name).display().to_string();
            lines.extend([
                ("listeners.ssl.local", format!("127.0.0.1:{}", port.number())),
                ("ssl_options.cacertfile", file(tls::CA)),
                ("ssl_options.certfile", file(tls::CERTIFICATE)),
                ("ssl_options.keyfile", file(tls::KEY)),
                ("ssl_options.verify", "verify_none".to_owned()),
                ("ssl_options.fail_if_no_peer_cert", "false".to_owned()),
            ]);
        }
        if let Some(port) = &self.management {
            lines.extend([
                ("management.tcp.ip", "127.0.0.1".to_owned()),
                ("management.tcp.port", port.number().to_string()),
            ]);
        }
        if let Some(timeout) = builder.consumer_timeout {
            lines.push(("consumer_timeout", timeout.as_millis().to_string()));
        }
        let own = lines.iter().map(|(key, value)| (*key, value.as_str()));
        let asked = builder
            .settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        own.chain(asked).fold(String::new(), |mut conf, (key, value)| {
            writeln!(conf, "{key} = {value}").ok();
            conf
        })
    }

    /// A program of its system, with what the broker's own have in their environment and nothing else.
    pub(crate) fn program(&self, program: &str) -> Command {
        let root = &self.installation.root;
        let mut command = if !self.installation.elsewhere() {
            let mut command = Command::new(program);
            command.current_dir(self.folder());
            command
        } else if rustix::process::geteuid().is_root() {
            let mut command = Command::new("chroot");
            command.arg(root).arg(program);
            command
        } else {
            let mut command = Command::new("unshare");
            command
                .arg("--map-root-user")
                .arg(format!("--root={}", root.display()))
                .arg(program);
            command
        };
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/erlang/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.inside(""))
            .env("ERL_INETRC", self.inside("inetrc"))
            .env("ERL_LIBS", self.inside("apps"))
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            // Not an argument: the broker sees to epmd every minute, and starts an erl without arguments for it.
            .env("ERL_AFLAGS", "-start_epmd false")
            .stdin(Stdio::null());
        command
    }

    /// What the distribution's script would start.
    pub(crate) fn server(&self) -> io::Result<Command> {
        let printed = fs::File::create(self.printed())?;
        let mut command = self.program("erl");
        command
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_HOME", &self.installation.home)
            .env("RABBITMQ_CONF_ENV_FILE", self.inside("no-such-file"))
            .env("RABBITMQ_CONFIG_FILE", self.inside("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.inside("advanced.config"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", self.inside("generated"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.inside("plugins"))
            .env("RABBITMQ_PLUGINS_DIR", self.inside("apps"))
            .env("RABBITMQ_PLUGINS_EXPAND_DIR", self.inside("expanded"))
            .env("RABBITMQ_MNESIA_BASE", self.inside("data"))
            .env("RABBITMQ_LOG_BASE", self.inside("log"))
            .env("RABBITMQ_PID_FILE", self.inside("pid"))
            .env("RABBITMQ_DIST_PORT", self.erlang.number().to_string())
            .args(["-noinput", "-boot", "start_sasl", "-s", "rabbit", "boot"])
            // Schedulers that have nothing to do sleep: the processors are for the tests.
            .args(["+W", "w", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"])
            .args(["-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false"])
            .args(["-kernel", "prevent_overlapping_partitions", "false"])
            .args(["-sname", &self.name()])
            .args(self.neighbours())
            .stdout(printed.try_clone()?)
            .stderr(printed);
        Ok(command)
    }

    /// What makes two Erlang nodes find each other without epmd: they know the port, and each other's cookie.
    pub(crate) fn neighbours(&self) -> [String; 7] {
        let port = self.erlang.number().to_string();
        [
            "-setcookie",
            COOKIE,
            "-erl_epmd_port",
            &port,
            "-kernel",
            "inet_dist_use_interface",
            "{127,0,0,1}",
        ]
        .map(str::to_owned)
    }

    /// What `erl_call` finds it by.
    pub(crate) fn call(&self) -> [String; 4] {
        let address = format!("localhost:{}", self.erlang.number());
        ["-address", &address, "-c", COOKIE].map(str::to_owned)
    }
}
