# A microVM as a Nomad job: nomad job run mayfly.nomad.hcl
# raw_exec must be enabled on the client: the jailer, which jailed.sh runs, needs root and confines the
# microVM better than the exec driver would. Each client needs, as root:
#
#   install -D -m 755 -t /usr/local/lib/mayfly examples/jailed.sh
#   install -m 755 -t /usr/local/bin build/release/mayfly build/release/mayfly-jailer
#   install -D -m 644 -t /srv/vm "$(./devtool rootfs | tail -n 1)"/{vmlinuz,initrd,root.ext4}
job "microvm" {
  type = "batch"

  group "vm" {
    # No port: a number that no other microVM of this client has, for the user that it runs as.
    network {
      port "user" {}
    }

    task "guest" {
      driver = "raw_exec"

      config {
        command = "/usr/local/lib/mayfly/jailed.sh"
        args    = ["${NOMAD_ALLOC_ID}", "${NOMAD_TASK_DIR}/vm.json", "${NOMAD_PORT_user}"]
      }

      template {
        destination = "local/vm.json"
        data        = <<-EOF
          {
            "boot-source": {
              "kernel_image_path": "/srv/vm/vmlinuz",
              "initrd_path": "/srv/vm/initrd",
              "boot_args": "console=ttyS0 reboot=k panic=1"
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
            "drives": [
              {
                "drive_id": "rootfs",
                "path_on_host": "/srv/vm/root.ext4",
                "is_root_device": true,
                "is_read_only": true
              }
            ]
          }
        EOF
      }

      # The guest's memory and some 10 MiB for the VMM.
      resources {
        cpu    = 500
        memory = 144
      }

      kill_signal = "SIGTERM"
    }
  }
}
