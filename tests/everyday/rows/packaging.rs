//! Archives, documents, and packages.

use crate::row::{BOOTED, Row, row};

pub const PACKAGES: &str = "zip unzip 7zip zstd xz-utils cpio squashfs-tools binutils dpkg-dev imagemagick graphviz groff ghostscript pandoc \
    fakeroot debhelper rpm autopkgtest equivs build-essential mtools dosfstools xorriso fonts-dejavu-core xvfb x11-utils \
    xauth gnupg openssl";

pub fn rows() -> Vec<Row> {
    [archives(), documents(), packages()]
        .into_iter()
        .flatten()
        .collect()
}

fn archives() -> Vec<Row> {
    vec![
        row("`zip` and `7z`", "z=$(command -v 7z 7zz | head -n 1); echo x >f; zip -q a.zip f; $z a -bd a.7z f >/dev/null; unzip -p a.zip; $z e -so a.7z 2>/dev/null").prints("x\nx"),
        row("`xz -T0` and `zstd -T0`", "head -c 4M /dev/zero >f; xz -T0 -k f; zstd -q -T0 f; xz -dc f.xz | cmp - f; zstd -dc f.zst | cmp - f"),
        row("`tar` with ACLs and attributes", "touch f; setfacl -m u:ci:r f; setfattr -n user.a -v b f; tar --acls --xattrs -cf a.tar f; rm f; tar --acls --xattrs -xf a.tar; getfacl -c f | grep user:ci; getfattr --only-values -n user.a f").prints("user:ci:r--\nb"),
        row("`cpio`", "echo x >f; echo f | cpio -o --quiet >a; rm f; cpio -i --quiet <a; cat f").prints("x"),
        row("`mksquashfs` and `unsquashfs`", "mkdir d; echo x >d/f; mksquashfs d i -quiet -no-progress >/dev/null; unsquashfs -q -n -d o i >/dev/null; cat o/f").prints("x"),
        row("`ar`", "echo x >f; ar rc a.a f; ar p a.a").prints("x"),
        row("disk images by `mtools` and `xorriso`", "truncate -s 2M i; mkfs.vfat i >/dev/null; echo x >f; mcopy -i i f ::; mtype -i i ::f; xorriso -as mkisofs -quiet -o iso f 2>/dev/null; file=$(stat -c %s iso); test $file -gt 0").prints("x"),
        row("`gpg`", "export GNUPGHOME=$PWD/g; mkdir -m 700 g; gpg -q --batch --passphrase '' --quick-generate-key a@b ed25519 2>/dev/null; echo x >f; gpg -q --batch --detach-sign f; gpg --verify f.sig 2>&1 | grep -o 'Good signature'; gpgconf --kill all").prints("Good signature"),
    ]
}

fn documents() -> Vec<Row> {
    vec![
        row("`pandoc`", "echo '# Title' | pandoc -t html | cut -c1-3").prints("<h1"),
        row("ImageMagick and `dot`", "echo 'graph { a -- b }' | dot -Tpng >a.png; convert a.png -resize 10x10! b.png; identify -format %wx%h b.png").prints("10x10"),
        row("PDF by `groff` and Ghostscript", "echo text | groff -Tps >a.ps; gs -q -sDEVICE=pdfwrite -o a.pdf a.ps; head -c 4 a.pdf").prints("%PDF"),
        row("`xvfb-run`", "xvfb-run -a xdpyinfo | grep -c '^dimensions\\|  dimensions'").prints("1"),
    ]
}

fn packages() -> Vec<Row> {
    vec![
        row("`dpkg-deb --build`", "mkdir -p p/DEBIAN; printf 'Package: rowdeb\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: d\\n' >p/DEBIAN/control
             dpkg-deb --build --root-owner-group p >/dev/null; dpkg -i p.deb >/dev/null; dpkg-query -Wf '${db:Status-Status}\\n' rowdeb; dpkg -P rowdeb >/dev/null").prints("installed"),
        row("`equivs-build`", "printf 'Package: rowequivs\\nDescription: d\\n' >c; equivs-build c >/dev/null 2>&1; ls *.deb").prints("rowequivs_1.0_all.deb"),
        row("`rpmbuild`", "printf 'Name: r\\nVersion: 1\\nRelease: 1\\nSummary: s\\nLicense: l\\nBuildArch: noarch\\n%%description\\nd\\n%%files\\n' >r.spec; rpmbuild --quiet --define \"_topdir $PWD\" -bb r.spec >/dev/null 2>&1; ls RPMS/noarch").prints("r-1-1.noarch.rpm"),
        row("`autopkgtest` with its null runner", "mkdir -p p/debian/tests p/debian/source; cd p; printf 'Source: p\\nMaintainer: a <a@b>\\n\\nPackage: p\\nArchitecture: all\\nDescription: d\\n' >debian/control
             printf 'p (1) unstable; urgency=low\\n\\n  * x\\n\\n -- a <a@b>  Mon, 02 Nov 2026 00:00:00 +0000\\n' >debian/changelog; printf 'Test-Command: echo tested\\nDepends:\\n' >debian/tests/control
             printf '#!/usr/bin/make -f\\n%%:\\n\\ttrue\\n' >debian/rules; chmod +x debian/rules
             autopkgtest -B . -- null 2>&1 | grep '^command1 *PASS' | sort -u | wc -l").prints("1"),
        row("packages of Debian by `dpkg-buildpackage`", r#"chown ci .
             build() { n=$(basename "$1" .dsc); as_ci sh -c "dpkg-source -x $1 $n && cd $n && dpkg-buildpackage -b -us -uc" >$n.log 2>&1 && echo built; }
             test "$(for dsc in /opt/packages/*.dsc; do build $dsc & done | grep -c built)" = "$(ls /opt/packages/*.dsc | wc -l)""#).only(BOOTED),
    ]
}
