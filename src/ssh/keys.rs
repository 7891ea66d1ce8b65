//! SSH keys: those that a run makes for itself, and those that a machine has been known by.

use anyhow::{Context, Result, bail};
use russh::keys::signature::Signer;
use russh::keys::ssh_key::{LineEnding, Signature};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey, decode_secret_key, key};

use crate::sys::secret::Secret;

/// A key and its other half, as `ssh-keygen` writes them.
#[derive(Debug)]
pub struct KeyPair {
    /// The private key in OpenSSH's own format, without a passphrase.
    pub private: Secret,
    /// One line, such as `ssh-ed25519 AAAA… comment`.
    pub public: String,
}

impl KeyPair {
    /// Makes an Ed25519 key.
    pub fn generate(comment: &str) -> Result<KeyPair> {
        let mut key = PrivateKey::random(&mut key::safe_rng(), Algorithm::Ed25519).context("making a key")?;
        key.set_comment(comment);
        let private = key.to_openssh(LineEnding::LF).context("writing the private key")?;
        let public = key.public_key().to_openssh().context("writing the public key")?;
        Ok(KeyPair { private: Secret::new(private.as_bytes().to_vec()), public })
    }
}

/// Returns the fingerprint of a line such as `ssh-ed25519 AAAA… comment`: `SHA256:…`, as
/// `ssh-keygen -l` prints it.
pub fn fingerprint(public: &str) -> Result<String> {
    Ok(public_key(public)?.fingerprint(HashAlg::Sha256).to_string())
}

/// Returns the public line, without a comment, of a private key that the door can be known by;
/// `None` where it is of another kind, needs a passphrase, or is none.
pub fn public_of(private: &str) -> Option<String> {
    let mut public = private_key(private)?.public_key().clone();
    public.set_comment("");
    public.to_openssh().ok()
}

/// Reads a private key that can sign: Ed25519, ECDSA or RSA, in OpenSSH's format or in PEM.
pub(super) fn private_key(text: &str) -> Option<PrivateKey> {
    let key = decode_secret_key(text, None).ok()?;
    let ours = match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => true,
        // Those of a security key need the security key.
        _ => false,
    };
    let signature: Option<Signature> = key.try_sign(b"a key that can sign").ok();
    (ours && signature.is_some()).then_some(key)
}

pub(super) fn public_key(line: &str) -> Result<PublicKey> {
    if line.trim().lines().count() != 1 {
        bail!("a public key is one line, such as the one in /etc/ssh/ssh_host_ed25519_key.pub");
    }
    PublicKey::from_openssh(line.trim()).context("reading a public key; write it as ssh-keygen -y prints it")
}
