# Prepares the image of the rows, as root in it.
set -e
useradd --create-home --shell /bin/bash --groups users ci
echo 'ci ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ci
# Rows start the servers that they need.
for unit in postgresql mariadb redis-server nginx apache2 memcached haproxy ssh ssh.socket rsync; do
    systemctl disable "$unit" || true
done
echo '@reboot root touch /run/reboot-of-cron' >/etc/cron.d/row
# Rows install and build these packages without a network.
mkdir /opt/packages
cd /opt/packages
apt-get download hello beanstalkd
echo "deb-src http://deb.debian.org/debian $(. /etc/os-release && echo "$VERSION_CODENAME") main" >/etc/apt/sources.list.d/source.list
apt-get update
apt-get source --download-only hostname
# Mirrors of a release in development lack some sources.
apt-get source --download-only figlet || grep -q ^VERSION_CODENAME=forky /etc/os-release
rm /etc/apt/sources.list.d/source.list
rm -rf /var/lib/apt/lists/*
