"""Metrics as their readers meet them: lines in a file or FIFO, Prometheus' text and the boot timeline."""

import json
import os
import re
import time

import pytest

from guests import drive, make_files, needs_kvm, start
from mayfly import BINARY, GUESTS, Mayfly, complete
from unix_http import encode

GROUPS = {
    "api_server": "process_startup_time_us process_startup_time_cpu_us",
    "balloon": "activate_fails inflate_count stats_updates_count stats_update_fails deflate_count "
               "event_fails free_page_report_count free_page_report_freed free_page_report_fails "
               "free_page_hint_count free_page_hint_freed free_page_hint_fails",
    "block": "activate_fails cfg_fails no_avail_buffer event_fails execute_fails "
             "invalid_reqs_count flush_count queue_event_count rate_limiter_event_count "
             "update_count update_fails read_bytes write_bytes read_count write_count "
             "rate_limiter_throttled_events io_engine_throttled_events remaining_reqs_count "
             "read_agg write_agg",
    "deprecated_api": "deprecated_http_api_calls",
    "entropy": "activate_fails entropy_event_fails entropy_event_count entropy_bytes "
               "host_rng_fails entropy_rate_limiter_throttled rate_limiter_event_count",
    "get_api_requests": "instance_info_count machine_cfg_count mmds_count vmm_version_count "
                        "hotplug_memory_count",
    "i8042": "error_count missed_read_count missed_write_count read_count reset_count write_count",
    "interrupts": "triggers config_updates",
    "latencies_us": " ".join(
        prefix + name for prefix in ("", "vmm_")
        for name in ("full_create_snapshot", "diff_create_snapshot", "load_snapshot", "pause_vm",
                     "resume_vm")),
    "logger": "missed_metrics_count metrics_fails missed_log_count rate_limited_log_count",
    "memory_hotplug": "activate_fails queue_event_fails queue_event_count plug_count plug_bytes "
                      "plug_fails plug_agg unplug_count unplug_bytes unplug_fails "
                      "unplug_discard_fails unplug_agg state_count state_fails state_agg "
                      "unplug_all_count unplug_all_fails unplug_all_agg",
    "mmds": "rx_accepted rx_accepted_err rx_accepted_unusual rx_bad_eth rx_invalid_token "
            "rx_no_token rx_count tx_bytes tx_count tx_errors tx_frames connections_created "
            "connections_destroyed",
    "net": "activate_fails cfg_fails no_rx_avail_buffer no_tx_avail_buffer event_fails "
           "rx_queue_event_count rx_event_rate_limiter_count rx_rate_limiter_throttled "
           "rx_tap_event_count rx_bytes_count rx_packets_count rx_fails rx_count tap_read_fails "
           "tap_write_fails tap_write_agg tx_bytes_count tx_malformed_frames tx_fails tx_count "
           "tx_packets_count tx_queue_event_count tx_rate_limiter_event_count "
           "tx_rate_limiter_throttled tx_spoofed_mac_count tx_remaining_reqs_count",
    "patch_api_requests": " ".join(
        f"{name}_count {name}_fails"
        for name in ("drive", "network", "machine_cfg", "mmds", "hotplug_memory", "pmem")),
    "pmem": "activate_fails cfg_fails event_fails queue_event_count rate_limiter_throttled_events "
            "rate_limiter_event_count",
    "put_api_requests": " ".join(
        f"{name}_count {name}_fails"
        for name in ("actions", "boot_source", "drive", "logger", "machine_cfg", "cpu_cfg",
                     "metrics", "network", "mmds", "vsock", "pmem", "serial", "hotplug_memory")),
    "seccomp": "num_faults",
    "signals": "sigbus sigsegv sigxfsz sigxcpu sigpipe sighup sigill",
    "uart": "error_count flush_count missed_read_count missed_write_count read_count write_count "
            "rate_limiter_dropped_bytes",
    "vcpu": "exit_io_in exit_io_out exit_mmio_read exit_mmio_write failures kvmclock_ctrl_fails "
            "exit_io_in_agg exit_io_out_agg exit_mmio_read_agg exit_mmio_write_agg",
    "vmm": "panic_count",
    "vsock": "activate_fails cfg_fails rx_queue_event_fails tx_queue_event_fails "
             "ev_queue_event_fails muxer_event_fails conn_event_fails rx_queue_event_count "
             "tx_queue_event_count rx_bytes_count tx_bytes_count rx_packets_count "
             "tx_packets_count conns_added conns_killed conns_removed killq_resync "
             "tx_flush_fails tx_write_fails rx_read_fails",
}
pytestmark = needs_kvm
FLUSH = {"action_type": "FlushMetrics"}


def lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def vm():
    with Mayfly("--boot-timer") as process:
        yield process


@pytest.fixture
def metrics(vm):
    path = os.path.join(vm.directory, "metrics")
    vm.ok("PUT", "/metrics", {"metrics_path": path})
    return path


def boot(vm, guest, boot_args=""):
    """Starts one of the test guests."""
    vm.ok("PUT", "/boot-source", {"kernel_image_path": f"{GUESTS}/{guest}",
                                  "boot_args": boot_args})
    vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})


def test_a_line_has_every_member_of_every_group_and_no_other(vm, files, metrics):
    vm.ok("PUT", "/drives/disk", drive(files["disk"]))
    start(vm, files)
    line, = lines(metrics)
    assert set(line) == {"utc_timestamp_ms", "block_disk", *GROUPS}
    for group, names in [*GROUPS.items(), ("block_disk", GROUPS["block"])]:
        assert set(line[group]) == set(names.split()), group
        for name, value in line[group].items():
            if name.endswith("_agg"):
                assert set(value) == {"min_us", "max_us", "sum_us"}
            else:
                assert isinstance(value, int), name


def test_nothing_is_written_before_the_start_and_one_line_at_it(vm, files, metrics):
    vm.ok("GET", "/version")
    assert lines(metrics) == []
    start(vm, files)
    assert len(lines(metrics)) == 1


def test_one_line_more_comes_with_the_end(vm, metrics):
    boot(vm, "exit", "reset")
    assert vm.wait() == 0
    written = lines(metrics)
    assert len(written) == 2
    assert sum(line["i8042"]["reset_count"] for line in written) == 1
    assert sum(line["vcpu"]["exit_io_out"] for line in written) > 0
    assert "exit_code=0" in vm.output().splitlines()[-1]


def test_flush_writes_a_line_running_or_paused(vm, files, metrics):
    start(vm, files)
    vm.ok("PUT", "/actions", FLUSH)
    vm.ok("PATCH", "/vm", {"state": "Paused"})
    vm.ok("PUT", "/actions", FLUSH)
    written = lines(metrics)
    assert len(written) == 3
    assert [line["put_api_requests"]["actions_count"] for line in written] == [1, 1, 1]
    latencies = written[2]["latencies_us"]
    assert latencies["pause_vm"] >= latencies["vmm_pause_vm"]
    assert "'pause vm' VMM action took " in vm.output()


def test_flush_without_metrics_succeeds(vm, files):
    start(vm, files)
    assert vm.request("PUT", "/actions", FLUSH)[0] == 204


def test_metrics_are_opened_once(vm, metrics):
    status, _, answer = vm.request("PUT", "/metrics", {"metrics_path": metrics})
    assert status == 400
    assert answer["fault_message"] == (
        "Metrics error: Cannot initialize the metrics system due to bad user input: "
        "Reinitialization of metrics not allowed.")


def test_the_flag_counts_as_the_first_time(tmp_path):
    path = str(tmp_path / "m")
    with Mayfly("--metrics-path", path) as vm:
        assert vm.request("PUT", "/metrics", {"metrics_path": path})[0] == 400
        start(vm, make_files(vm.directory))
        assert len(lines(path)) == 1


def test_id_and_properties_are_shown_on_request(vm, files):
    path = os.path.join(vm.directory, "metrics")
    body = '{"metrics_path": "%s", "emit_id": true, "properties": {"a": "x\\n",\n "b": ""}}'
    vm.ok("PUT", "/metrics", body % path)
    start(vm, files)
    line, = lines(path)
    assert line["id"] == "anonymous-instance"
    assert line["properties"] == {"a": "x\n", "b": ""}


def test_requests_are_counted_with_their_failures(vm, files, metrics):
    vm.request("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 1})
    vm.ok("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None"})
    vm.ok("GET", "/version")
    start(vm, files)
    line, = lines(metrics)
    assert line["put_api_requests"]["machine_cfg_count"] == 2
    assert line["put_api_requests"]["machine_cfg_fails"] == 1
    assert line["put_api_requests"]["metrics_count"] == 1
    assert line["get_api_requests"]["vmm_version_count"] == 1
    assert line["deprecated_api"]["deprecated_http_api_calls"] == 1


def flush_fails(vm):
    """The text of a flush that is refused; None of one that is not."""
    status, _, answer = vm.request("PUT", "/actions", FLUSH)
    return None if status == 204 else answer["fault_message"]


def test_a_fifo_needs_no_reader_and_a_full_one_is_told_and_gets_whole_lines(vm, files):
    path = os.path.join(vm.directory, "pipe")
    os.mkfifo(path)
    vm.ok("PUT", "/metrics", {"metrics_path": path})
    start(vm, files)
    flushes, refused = 50, 0
    for _ in range(flushes):
        text = flush_fails(vm)
        refused += text is not None
        assert text in (None, "Internal VMM error: Metrics error: Resource temporarily unavailable "
                              "(os error 11)")
    assert text and 0 < refused < flushes
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    data = os.read(reader, 1 << 20)
    cut = not data.endswith(b"\n") # the pipe took a part of a line, whose rest is to come
    assert flush_fails(vm) is None
    written = [json.loads(line) for line in (data + os.read(reader, 1 << 20)).splitlines()]
    os.close(reader)
    assert len(written) == 1 + flushes - refused + cut + 1 # the first is of the start
    assert written[-1]["logger"]["missed_metrics_count"] == refused - cut
    assert sum(line["put_api_requests"]["actions_count"] for line in written) == flushes + 2


def test_a_full_disk_is_told(vm, files):
    vm.ok("PUT", "/metrics", {"metrics_path": "/dev/full"})
    start(vm, files)
    text = "No space left on device (os error 28)"
    assert flush_fails(vm) == f"Internal VMM error: Metrics error: {text}"
    assert vm.output().count(f"Failed to write metrics: {text}") == 1 # nobody asked for the first


def test_a_log_fifo_needs_no_reader_and_counts_what_it_loses(vm, files, metrics):
    path = os.path.join(vm.directory, "log")
    os.mkfifo(path)
    vm.ok("PUT", "/logger", {"log_path": path})
    for _ in range(2000):
        vm.ok("GET", "/version")
    start(vm, files)
    assert lines(metrics)[0]["logger"]["missed_log_count"] > 0


def exposed(text):
    """{(name, labels): value} and {family: type} of Prometheus' text, held to its rules."""
    assert text.endswith("# EOF\n")
    types, values, helped = {}, {}, None
    for line in text.splitlines()[:-1]:
        if named := re.fullmatch(r"# HELP (\w+) \S.*\.", line):
            helped = named[1]
        elif kind := re.fullmatch(r"# TYPE (\w+) (counter|gauge|histogram)", line):
            assert kind[1] == helped and helped not in types
            family = kind[1]
            types[family] = kind[2]
            assert (kind[2] == "counter") == family.endswith("_total")
        else:
            name, labels, value = re.fullmatch(r'(\w+)(\{[^{}]*\})? (\d+(?:\.\d{6})?)', line).groups()
            part = "(_bucket|_sum|_count)" if types[family] == "histogram" else ""
            assert re.fullmatch(family + part, name)
            assert (name, labels) not in values
            values[name, labels] = float(value)
    return values, types


def test_what_prometheus_gets_is_well_formed_and_absolute(vm, files, metrics):
    vm.ok("PUT", "/drives/disk", drive(files["disk"]))
    start(vm, files)
    vm.ok("PUT", "/actions", FLUSH)
    status, headers, text = vm.request("GET", "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values, _ = exposed(text)
    version = re.search(r"^mayfly (.*)$", complete(BINARY, "--version").stdout, re.M)[1]
    assert values["mayfly_put_api_requests_actions_count_total", None] == 2
    assert ("mayfly_block_read_bytes_total", '{id="disk"}') in values
    assert [labels for name, labels in values if name == "mayfly_info"] == [
        f'{{id="anonymous-instance",version="{version}"}}']
    assert values["mayfly_memory_bytes", None] == 128 << 20
    assert values["mayfly_running", None] == 1
    vm.ok("PATCH", "/vm", {"state": "Paused"})
    later, _ = exposed(vm.request("GET", "/metrics")[2])
    assert later["mayfly_running", None] == 0
    assert later["mayfly_latency_pause_vm_seconds", None] > 0
    assert later["process_cpu_seconds_total", None] > values["process_cpu_seconds_total", None] > 0
    assert 0 < values["process_start_time_seconds", None] <= time.time()
    timeline = vm.ok("GET", "/boot-timeline")
    assert {labels: round(value * 1e6) for (name, labels), value in later.items()
            if name == "mayfly_boot_phase_seconds"} == {
        f'{{phase="{name[:-3]}"}}': us for name, us in timeline.items()
        if us is not None and name != "exec_us"}


def test_each_member_that_counts_something_has_a_family(vm, files):
    """What is not shown is of devices that this VM or this version does not have."""
    def groups():
        _, types = exposed(vm.request("GET", "/metrics")[2])
        names = {name for name in types if name.startswith("mayfly_")}
        return {group for group in GROUPS if any(name.startswith(f"mayfly_{group}_")
                                                 for name in names)}, names
    lacking = {"balloon", "entropy", "memory_hotplug", "pmem"}
    bare, _ = groups()
    assert bare == set(GROUPS) - lacking - {"block", "net", "vsock", "mmds", "latencies_us"}
    vm.ok("PUT", "/drives/disk", drive(files["disk"]))
    vm.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    start(vm, files)
    some, names = groups()
    assert some == bare | {"block", "vsock"}
    assert not [name for name in names if "pmem" in name or "hotplug" in name]
    for name in GROUPS["block"].split():
        name = name.replace("_agg", "_seconds")
        assert {f"mayfly_block_{name}", f"mayfly_block_{name}_total"} & names


def test_latencies_are_histograms(vm):
    boot(vm, "../benchmarks/mark")
    vm.wait_for_output("Guest-boot-time")
    vm.ok("PATCH", "/vm", {"state": "Paused"})
    values, types = exposed(vm.request("GET", "/metrics")[2])
    family = "mayfly_vcpu_exit_mmio_write_seconds"
    assert types[family] == "histogram"
    buckets = [value for (name, _), value in values.items() if name == family + "_bucket"]
    assert buckets == sorted(buckets) and len(buckets) == 10
    count = values[family + "_count", None]
    assert values[family + "_bucket", '{le="+Inf"}'] == buckets[-1] == count > 0
    assert count == values["mayfly_vcpu_exit_mmio_write_total", None]
    assert (family + "_sum", None) in values

def test_the_boot_timeline_tells_each_phase_in_order(vm):
    names = ["exec_us", "main_us", "api_ready_us", "instance_start_us", "guest_loaded_us",
             "kvm_vm_us", "kvm_memory_us", "kvm_irqchip_us", "kvm_vcpus_us", "devices_us"]
    before = vm.ok("GET", "/boot-timeline")
    assert [name for name in before if before[name] is not None] == names[:3]
    boot(vm, "../benchmarks/mark")
    vm.wait_for_output("Guest-boot-time")
    after = vm.ok("GET", "/boot-timeline")
    assert list(after) == [*names, "guest_entry_us", "started_us", "guest_mark_us"]
    times = [after[name] for name in names]
    assert times == sorted(times)
    assert times[-1] <= after["guest_entry_us"] <= after["guest_mark_us"]
    assert times[-1] <= after["started_us"]


def test_the_start_is_measured_from_the_jailers(tmp_path):
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    path = str(tmp_path / "m")
    with Mayfly("--metrics-path", path, "--start-time-us", str(now - 5000000),
                "--start-time-cpu-us", "0", "--parent-cpu-time-us", "7000000") as vm:
        start(vm, make_files(vm.directory))
        server = lines(path)[0]["api_server"]
        assert server["process_startup_time_us"] >= 5000000
        assert server["process_startup_time_cpu_us"] >= 7000000
        assert vm.ok("GET", "/boot-timeline")["api_ready_us"] >= 5000000


def test_a_client_that_is_gone_is_counted(vm, files, metrics):
    for _ in range(20):
        with vm.connect() as client:
            client.sendall(encode("GET", "/version") * 300)
    start(vm, files)
    vm.ok("PUT", "/actions", FLUSH)
    assert sum(line["signals"]["sigpipe"] for line in lines(metrics)) > 0
