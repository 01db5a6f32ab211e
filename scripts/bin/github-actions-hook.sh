#!/bin/bash
# Calls nspawn-github-actions-hook. GitHub's runner takes a hook whose name ends in .sh, and calls
# it with a PATH that jobs have extended.
set -euo pipefail

PATH=/usr/sbin:/usr/bin:/sbin:/bin
PATH=$(dirname -- "$(realpath -- "$0")")/../../bin:$PATH
exec nspawn-github-actions-hook
