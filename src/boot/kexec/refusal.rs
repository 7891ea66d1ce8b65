//! Why the kernel that runs refuses another one, told apart by its error numbers and its settings.

use std::fs;
use std::io;

use nix::errno::Errno;

use crate::size::Bytes;

/// Why another kernel cannot be loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KexecError {
    #[error(
        "kernel.kexec_load_disabled or kexec_load_limit_reboot forbids loading another kernel until the next boot; remove it from the sysctl settings and reboot"
    )]
    Disabled,
    #[error(
        "the kernel is locked down ({0}) and starts signed kernels only; turn Secure Boot off in the firmware's settings and reboot"
    )]
    LockedDown(String),
    #[error("loading another kernel is not permitted; run this as root, and not in a container")]
    NotPermitted,
    #[error(
        "the running kernel wants a signature on the other one and does not accept this ({0}); turn Secure Boot off in the firmware's settings and reboot"
    )]
    Signature(Errno),
    #[error("the running kernel was built without kexec; boot one that has it")]
    NotBuiltIn,
    #[error(
        "there is not enough memory free to keep {0} for another kernel; stop services, or take a machine with more memory"
    )]
    NoMemory(Bytes),
    #[error(
        "the file is no kernel that the running one could start; check that it was built for this machine"
    )]
    NotAKernel,
    #[error("the kernel or the initrd is still open for writing; close it first")]
    BeingWritten,
    #[error("the kernel's command line has {have} bytes and may have {most}; shorten it")]
    CommandLine { have: usize, most: usize },
    #[error("reading {file}: {cause}")]
    Unreadable { file: String, cause: String },
    #[error("loading another kernel: {0}")]
    Other(Errno),
}

impl KexecError {
    pub fn unreadable(file: &str, cause: &io::Error) -> KexecError {
        KexecError::Unreadable { file: file.to_owned(), cause: cause.to_string() }
    }
}

/// Tells whether placing the parts ourselves may succeed, and is no way around what somebody forbade.
pub fn has_second_way(error: &KexecError, lockdown: Option<&str>) -> bool {
    match error {
        KexecError::NotBuiltIn => true,
        // Without a signature to check, and without copies of the files.
        KexecError::Signature(_) | KexecError::NoMemory(_) => matches!(lockdown, None | Some("none")),
        _ => false,
    }
}

/// Says what an error number means here, with what the machine's settings say of it.
pub fn explain(errno: Errno, need: Bytes) -> KexecError {
    let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let settings = Settings {
        disabled: sysctl("kexec_load_disabled").trim() == "1"
            || sysctl("kexec_load_limit_reboot").trim() == "0",
        lockdown: lockdown(),
    };
    meaning(errno, need, settings)
}

/// What forbids loading.
struct Settings {
    disabled: bool,
    lockdown: Option<String>,
}

fn meaning(errno: Errno, need: Bytes, settings: Settings) -> KexecError {
    match (errno, settings.lockdown) {
        (Errno::EPERM, _) if settings.disabled => KexecError::Disabled,
        (Errno::EPERM, Some(level)) if level != "none" => KexecError::LockedDown(level),
        (Errno::EPERM, _) => KexecError::NotPermitted,
        // No signature at all is ENODATA.
        (Errno::ENODATA | Errno::ENOKEY | Errno::EKEYREJECTED | Errno::EBADMSG | Errno::ENOPKG, _) => {
            KexecError::Signature(errno)
        }
        (Errno::ENOSYS, _) => KexecError::NotBuiltIn,
        (Errno::ENOMEM | Errno::EADDRNOTAVAIL, _) => KexecError::NoMemory(need),
        // What would take more than half of the memory; command line and flags are as they should be.
        (Errno::EINVAL, _) if cfg!(target_arch = "x86_64") => KexecError::NoMemory(need),
        (Errno::ENOEXEC, _) => KexecError::NotAKernel,
        (Errno::ETXTBSY, _) => KexecError::BeingWritten,
        _ => KexecError::Other(errno),
    }
}

/// Returns how far the running kernel protects itself from root: `none`, `integrity`, `confidentiality`.
pub fn lockdown() -> Option<String> {
    chosen(&fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
}

/// Reads `none [integrity] confidentiality`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_told_apart() {
        let need = Bytes::mib(80);
        let free = || (false, None);
        let locked = |level: &str| (false, Some(level.to_owned()));
        for (errno, (disabled, lockdown), wanted) in [
            (Errno::EPERM, (true, Some("integrity".into())), KexecError::Disabled),
            (Errno::EPERM, locked("integrity"), KexecError::LockedDown("integrity".into())),
            (Errno::EPERM, locked("none"), KexecError::NotPermitted),
            (Errno::EPERM, free(), KexecError::NotPermitted),
            (Errno::ENOKEY, free(), KexecError::Signature(Errno::ENOKEY)),
            (Errno::EKEYREJECTED, locked("integrity"), KexecError::Signature(Errno::EKEYREJECTED)),
            (Errno::EBADMSG, free(), KexecError::Signature(Errno::EBADMSG)),
            (Errno::ENODATA, free(), KexecError::Signature(Errno::ENODATA)),
            (Errno::ENOSYS, free(), KexecError::NotBuiltIn),
            (Errno::ENOMEM, free(), KexecError::NoMemory(need)),
            (Errno::EADDRNOTAVAIL, free(), KexecError::NoMemory(need)),
            (Errno::ENOEXEC, free(), KexecError::NotAKernel),
            (Errno::ETXTBSY, free(), KexecError::BeingWritten),
            (Errno::EBUSY, free(), KexecError::Other(Errno::EBUSY)),
        ] {
            assert_eq!(meaning(errno, need, Settings { disabled, lockdown }), wanted, "{errno}");
        }
    }

    #[test]
    fn the_second_way_is_no_way_around_lockdown() {
        for (error, lockdown, wanted) in [
            (KexecError::NotBuiltIn, None, true),
            (KexecError::Signature(Errno::ENOKEY), None, true),
            (KexecError::Signature(Errno::ENODATA), Some("none"), true),
            (KexecError::Signature(Errno::ENODATA), Some("integrity"), false),
            (KexecError::NoMemory(Bytes::mib(80)), None, true),
            (KexecError::NoMemory(Bytes::mib(80)), Some("integrity"), false),
            (KexecError::LockedDown("integrity".into()), Some("integrity"), false),
            (KexecError::Disabled, None, false),
            (KexecError::NotAKernel, None, false),
        ] {
            assert_eq!(has_second_way(&error, lockdown), wanted, "{error}, {lockdown:?}");
        }
        assert_eq!(chosen("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(chosen("[none] integrity confidentiality\n").as_deref(), Some("none"));
        assert_eq!(chosen(""), None);
    }
}
