//! Forms with one file (`multipart/form-data`, RFC 7578), by which artifacts are uploaded.
//!
//! This is written by hand because the parsers on crates.io are asynchronous or no longer
//! maintained.

use crate::http::Request;

const BOUNDARY: &str = "nspawn-ci-gitlab-runner-stand-in";
const CONTENT_TYPE: &str = "multipart/form-data; boundary=";

/// A file in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormFile {
    /// File name that the uploader gives.
    pub name: String,
    /// Content of the file.
    pub content: Vec<u8>,
}

impl FormFile {
    /// Returns the content type and the body of a request that uploads this file.
    pub fn encode(&self) -> (String, Vec<u8>) {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            self.name
        );
        let end = format!("\r\n--{BOUNDARY}--\r\n");
        let body = [head.as_bytes(), &self.content, end.as_bytes()].concat();
        (format!("{CONTENT_TYPE}{BOUNDARY}"), body)
    }

    /// Returns the file that a request uploads, if the request has one.
    pub fn from_request(request: &Request) -> Option<Self> {
        let content_type = crate::http::header(request.headers(), "Content-Type");
        Self::decode(content_type, request.body())
    }

    fn decode(content_type: &str, body: &[u8]) -> Option<Self> {
        let (_, boundary) = content_type.split_once(CONTENT_TYPE)?;
        let boundary = format!("--{}", boundary.trim_matches('"'));
        let rest = body.strip_prefix(boundary.as_bytes())?;
        let (head, rest) = split_at_bytes(rest, b"\r\n\r\n")?;
        let (content, _) = split_at_bytes(rest, format!("\r\n{boundary}").as_bytes())?;
        let head = String::from_utf8_lossy(head);
        let (_, name) = head.split_once("name=\"file\"; filename=\"")?;
        Some(Self {
            name: name.split('"').next()?.to_owned(),
            content: content.to_vec(),
        })
    }
}

fn split_at_bytes<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = bytes
        .windows(separator.len())
        .position(|part| part == separator)?;
    Some((&bytes[..start], &bytes[start + separator.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_holds_a_file() {
        let kind = "multipart/form-data; boundary=x";
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a.zip\"\r\nContent-Type: any";
        let body = format!("--x\r\n{head}\r\n\r\na\r\n-x\r\n--x--\r\n");
        let file = FormFile::decode(kind, body.as_bytes()).unwrap();
        assert_eq!((&*file.name, &*file.content), ("a.zip", &b"a\r\n-x"[..]));
        assert_eq!(FormFile::decode(kind, b"--x\r\n\r\n\r\n"), None);
        assert_eq!(FormFile::decode("text/plain", b""), None);
    }

    #[test]
    fn encoded_file_is_decoded() {
        let file = FormFile {
            name: "product.zip".to_owned(),
            content: crate::random(1000, 1),
        };
        let (kind, body) = file.encode();
        assert_eq!(FormFile::decode(&kind, &body), Some(file));
    }
}
