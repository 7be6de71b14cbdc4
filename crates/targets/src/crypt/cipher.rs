//! The cipher argument: which cipher, in which mode, with which initial vectors.
//!
//! `aes[:1]-MODE-IV[:OPTIONS]`, or in the crypto API's words `capi:MODE(aes)-IV[:OPTIONS]`.

use thinmap_dm::TableError;

use super::NAME;

/// How blocks of a sector hang together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Xts,
    Cbc,
    Ecb,
}

/// Where a sector's initial vector comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IvKind {
    /// The sector's number, 32 bits, little end first.
    Plain,
    /// The sector's number, 64 bits, little end first.
    Plain64,
    /// The sector's number at the end of the vector, big end first.
    Plain64Be,
    /// Counts blocks of 16 bytes from 1, at the end, big end first.
    Benbi,
    /// Zero.
    Null,
    /// The sector's place in bytes, encrypted with the key (BitLocker).
    Eboiv,
}

/// A cipher argument that was understood.
#[derive(Clone, Debug)]
pub(super) struct CipherSpec {
    /// As it was given.
    pub(super) text: String,
    pub(super) mode: Mode,
    pub(super) iv: IvKind,
    /// The vector is encrypted with the SHA-256 of the key as a key.
    pub(super) essiv: bool,
}

impl CipherSpec {
    /// Errnos and the first words of texts are the kernel's.
    pub(super) fn parse(text: &str) -> Result<Self, TableError> {
        let names = match text.strip_prefix("capi:") {
            Some(api) => Names::of_api(api)?,
            None => Names::of_legacy(text)?,
        };
        let (mode, essiv) = names.known(text)?;
        // Without vectors there is nothing to choose.
        let iv = match (mode, names.iv.as_deref()) {
            (Mode::Ecb, _) => IvKind::Null,
            (_, None) => return Err(invalid("IV mechanism required")),
            (_, Some(iv)) => iv_kind(iv)?,
        };
        if iv == IvKind::Eboiv && mode != Mode::Cbc {
            let reason = "Error creating IV: eboiv goes with cbc only";
            return Err(invalid(reason));
        }
        Ok(Self {
            text: text.to_owned(),
            mode,
            iv,
            essiv,
        })
    }
}

/// What a cipher argument names.
struct Names {
    /// In the crypto API's words: `xts(aes)`, `essiv(cbc(aes),sha256)`.
    api: String,
    iv: Option<String>,
}

impl Names {
    fn of_legacy(text: &str) -> Result<Self, TableError> {
        if text.contains('(') {
            return Err(invalid("Bad cipher specification"));
        }
        let mut parts = text.splitn(3, '-');
        let cipher = parts.next().unwrap_or_default();
        let (cipher, count) = match cipher.split_once(':') {
            Some((cipher, count)) => (cipher, Some(count)),
            None => (cipher, None),
        };
        if let Some(count) = count {
            check_key_count(count)?;
        }
        let mut mode = parts.next();
        let rest = parts.next();
        let (mut iv, options) = match rest.map(|rest| rest.split_once(':').ok_or(rest)) {
            Some(Ok((iv, options))) => (Some(iv), Some(options)),
            Some(Err(iv)) => (Some(iv), None),
            None => (None, None),
        };
        // The first mappings named a cipher only.
        if mode.is_none() || (mode == Some("plain") && iv.is_none()) {
            (mode, iv) = (Some("cbc"), Some("plain"));
        }
        let mode = mode.unwrap_or_default();
        if mode != "ecb" && iv.is_none() {
            return Err(invalid("IV mechanism required"));
        }
        let api = with_essiv(format!("{mode}({cipher})"), iv, options)?;
        Ok(Self {
            api,
            iv: iv.map(str::to_owned),
        })
    }

    fn of_api(text: &str) -> Result<Self, TableError> {
        let (text, options) = match text.rsplit_once(':') {
            Some((text, options)) => (text, Some(options)),
            None => (text, None),
        };
        let (api, iv) = match text.rsplit_once('-') {
            Some((api, iv)) => (api, Some(iv)),
            None => (text, None),
        };
        let api = with_essiv(api.to_owned(), iv, options)?;
        Ok(Self {
            api,
            iv: iv.map(str::to_owned),
        })
    }

    /// Whether it is a cipher that thinmap has.
    fn known(&self, text: &str) -> Result<(Mode, bool), TableError> {
        let (inner, hash) = match self
            .api
            .strip_prefix("essiv(")
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|rest| rest.rsplit_once(','))
        {
            Some((inner, hash)) => (inner, Some(hash)),
            None => (self.api.as_str(), None),
        };
        let mode = match inner {
            "xts(aes)" => Mode::Xts,
            "cbc(aes)" => Mode::Cbc,
            "ecb(aes)" => Mode::Ecb,
            _ => return Err(no_cipher(text, ENOENT)),
        };
        match hash {
            None => Ok((mode, false)),
            Some("sha256") if mode != Mode::Ecb => Ok((mode, true)),
            // Its digest is no key of AES's.
            Some("sha384" | "sha512") => Err(no_cipher(text, EINVAL)),
            Some(_) => Err(no_cipher(text, ENOENT)),
        }
    }
}

fn with_essiv(api: String, iv: Option<&str>, options: Option<&str>) -> Result<String, TableError> {
    match (iv, options) {
        (Some("essiv"), None) => Err(invalid("Digest algorithm missing for ESSIV mode")),
        (Some("essiv"), Some(hash)) => Ok(format!("essiv({api},{hash})")),
        _ => Ok(api),
    }
}

/// COMPAT: the kernel takes any power of two, for old loop-AES volumes.
fn check_key_count(count: &str) -> Result<(), TableError> {
    match crate::args::parse_u64(count) {
        Some(1) => Ok(()),
        Some(count) if count.is_power_of_two() => Err(invalid(format!(
            "Bad cipher key count specification: {count} keys in one are not supported"
        ))),
        _ => Err(invalid("Bad cipher key count specification")),
    }
}

fn iv_kind(name: &str) -> Result<IvKind, TableError> {
    Ok(match name {
        "plain" => IvKind::Plain,
        // The sector's number is what is encrypted.
        "plain64" | "essiv" => IvKind::Plain64,
        "plain64be" => IvKind::Plain64Be,
        "benbi" => IvKind::Benbi,
        "null" => IvKind::Null,
        "eboiv" => IvKind::Eboiv,
        "lmk" | "tcw" | "elephant" | "random" => {
            return Err(invalid(format!("Invalid IV mode: {name} is not supported")));
        }
        _ => return Err(invalid("Invalid IV mode")),
    })
}

fn no_cipher(text: &str, errno: i32) -> TableError {
    let reason = format!("Error allocating crypto tfm: {text}: there is aes in xts, cbc and ecb");
    TableError::new(NAME, reason, errno)
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphers_are_understood_in_both_ways_of_writing() {
        let cases = [
            ("aes", Mode::Cbc, IvKind::Plain, false),
            ("aes-plain", Mode::Cbc, IvKind::Plain, false),
            ("aes:1-cbc-null", Mode::Cbc, IvKind::Null, false),
            ("aes-xts-plain64", Mode::Xts, IvKind::Plain64, false),
            ("aes-xts-plain64be", Mode::Xts, IvKind::Plain64Be, false),
            ("aes-cbc-essiv:sha256", Mode::Cbc, IvKind::Plain64, true),
            ("aes-cbc-benbi", Mode::Cbc, IvKind::Benbi, false),
            ("aes-ecb", Mode::Ecb, IvKind::Null, false),
            ("aes-ecb-plain", Mode::Ecb, IvKind::Null, false),
            ("capi:xts(aes)-plain64", Mode::Xts, IvKind::Plain64, false),
            (
                "capi:cbc(aes)-essiv:sha256",
                Mode::Cbc,
                IvKind::Plain64,
                true,
            ),
        ];
        for (text, mode, iv, essiv) in cases {
            let spec = CipherSpec::parse(text).expect(text);
            assert_eq!(
                (spec.mode, spec.iv, spec.essiv),
                (mode, iv, essiv),
                "{text}"
            );
            assert_eq!(spec.text, text);
        }
    }
}
