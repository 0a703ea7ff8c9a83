# A microVM as a Nomad job: nomad job run mayfly.nomad.hcl
# raw_exec must be enabled on the client. It does not confine the task; with the jailer, which
# mayfly does not have yet, this becomes a job of the exec driver.
job "microvm" {
  type = "batch"

  group "vm" {
    task "guest" {
      driver = "raw_exec"

      config {
        command = "/usr/local/bin/mayfly"
        args = [
          "--id", "${NOMAD_ALLOC_ID}",
          "--api-sock", "${NOMAD_TASK_DIR}/api.sock",
          "--config-file", "${NOMAD_TASK_DIR}/vm.json",
          "--log-path", "${NOMAD_TASK_DIR}/log",
        ]
      }

      template {
        destination = "local/vm.json"
        data        = <<-EOF
          {
            "boot-source": {
              "kernel_image_path": "/srv/vm/vmlinux",
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
