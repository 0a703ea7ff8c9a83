// Drives a microVM as Kata Containers' shim does: by Kata's driver for Firecracker, unchanged, which
// is in its package virtcontainers.
//
// usage: kata BINARY JAILER KERNEL IMAGE DISK TAP
//
// JAILER may be empty: no jail. KERNEL is the test guest `vsock`, IMAGE any file, which becomes
// /dev/vda, DISK one of at least two sectors, which is plugged in and out. Cells are below /run/vc.
// Prints a line of JSON for each check, [name, "passed" or "failed", why], and then one with what
// the driver's steps took, in milliseconds.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kata-containers/kata-containers/src/runtime/pkg/device/config"
	vc "github.com/kata-containers/kata-containers/src/runtime/virtcontainers"
	agent "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/client"
	"github.com/kata-containers/kata-containers/src/runtime/virtcontainers/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
)

const (
	id       = "pod"
	vcpus    = 2
	sector   = 512
	patience = 2 * time.Minute
	// Slots of the guest's devices: the image, eight drives to be replaced, the interface, the vsock.
	slotOfDrive = "1"
	slotOfVsock = "10"
	// Ports that the guest serves.
	portDisk = 51
	portEcho = 52
)

// The text of what the VMM writes to the log's FIFO, as the driver's logger gets it.
type fifoLog struct {
	lock sync.Mutex
	text strings.Builder
}

func (l *fifoLog) Levels() []logrus.Level { return logrus.AllLevels }

func (l *fifoLog) Fire(entry *logrus.Entry) error {
	if entry.Data["fifoName"] == "logs.fifo" {
		l.lock.Lock()
		defer l.lock.Unlock()
		fmt.Fprintln(&l.text, entry.Data["contents"])
	}
	return nil
}

func (l *fifoLog) has(text string) bool {
	l.lock.Lock()
	defer l.lock.Unlock()
	return strings.Contains(l.text.String(), text)
}

type machine struct {
	vc.Hypervisor
	vsock      types.HybridVSock
	log        fifoLog
	disk       config.BlockDrive
	tap        string
	hypervisor vc.HypervisorConfig
	took       map[string]float64
}

// What a step of the driver's takes is part of the output.
func (m *machine) timed(name string, step func() error) error {
	begin := time.Now()
	err := step()
	m.took[name] = float64(time.Since(begin).Microseconds()) / 1000
	return err
}

func waitUntil(what string, holds func() bool) error {
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("never came: %s", what)
		}
	}
	return nil
}

// The driver's own socket, log and interface, as a sandbox of Kata's sets them up.
func (m *machine) create(ctx context.Context) error {
	driver, err := vc.NewHypervisor(vc.FirecrackerHypervisor)
	if err != nil {
		return err
	}
	m.Hypervisor = driver
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.DebugLevel)
	logger.AddHook(&m.log)
	vc.SetLogger(ctx, logrus.NewEntry(logger))
	network, err := vc.NewNetwork(&vc.NetworkConfig{NetworkID: "/proc/self/ns/net"})
	if err != nil {
		return err
	}
	if err := driver.CreateVM(ctx, id, network, &m.hypervisor); err != nil {
		return err
	}
	socket, err := driver.GenerateSocket(id)
	if err != nil {
		return err
	}
	m.vsock = socket.(types.HybridVSock)
	if err := driver.AddDevice(ctx, m.vsock, vc.HybridVirtioVsockDev); err != nil {
		return err
	}
	tap := vc.NetworkInterface{Name: m.tap, HardAddr: "02:00:00:00:00:01"}
	return driver.AddDevice(ctx, &vc.VethEndpoint{NetPair: vc.NetworkInterfacePair{
		TapInterface: vc.TapInterface{TAPIface: tap},
		VirtIface:    vc.NetworkInterface{Name: "eth0"},
	}}, vc.NetDev)
}

// Kata pins these threads, which it finds by their names. It keeps what it found to itself.
func (m *machine) threads(ctx context.Context) error {
	found, err := m.GetThreadIDs(ctx)
	if err != nil {
		return err
	}
	if n := reflect.ValueOf(found).FieldByName("vcpus").Len(); n != vcpus {
		return fmt.Errorf("%d threads of vCPUs", n)
	}
	return nil
}

// Sends to a port of the guest by Kata's dialer, which is patient, and reads what comes back.
func (m *machine) ask(port uint32, text string, size int) (string, error) {
	socket := m.vsock
	socket.Port = port
	connection, err := agent.HybridVSockDialer(socket.String(), patience)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if text != "" { // the guest may be through already
		if _, err := io.WriteString(connection, text); err != nil {
			return "", err
		}
	}
	answer := make([]byte, size)
	n, err := io.ReadFull(connection, answer)
	return string(answer[:n]), err
}

func (m *machine) echo(context.Context) error {
	answer, err := m.ask(portEcho, "hello", len("hello"))
	if err == nil && answer != "hello" {
		err = fmt.Errorf("%q came back", answer)
	}
	return err
}

// The guest reads the first sector, and writes it to the second.
func (m *machine) plug(ctx context.Context) error {
	err := m.timed("HotplugAddDevice", func() error {
		_, err := m.HotplugAddDevice(ctx, &m.disk, vc.BlockDev)
		return err
	})
	if err != nil {
		return err
	}
	read, err := m.ask(portDisk, "", sector)
	if err != nil {
		return err
	}
	file, err := os.ReadFile(m.disk.File)
	if err != nil {
		return err
	}
	if read != string(file[:sector]) || !bytes.Equal(file[:sector], file[sector:2*sector]) {
		return errors.New("the guest read or wrote something else")
	}
	return nil
}

func (m *machine) unplug(ctx context.Context) error {
	err := m.timed("HotplugRemoveDevice", func() error {
		_, err := m.HotplugRemoveDevice(ctx, &m.disk, vc.BlockDev)
		return err
	})
	if err != nil {
		return err
	}
	if read, err := m.ask(portDisk, "", sector); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the guest has a drive still: %d bytes, %v", len(read), err)
	}
	return nil
}

// Both from FIFOs: a line of the log that is the plugging's, and a figure that is never 0.
func (m *machine) fifos(context.Context) error {
	if err := waitUntil("a request in the log", func() bool {
		return m.log.has("/drives/drive_0")
	}); err != nil {
		return err
	}
	if err := m.flushMetrics(); err != nil {
		return err
	}
	return waitUntil("kata_firecracker_get_api_requests", func() bool {
		return figure("kata_firecracker_get_api_requests", "instance_info_count") > 0
	})
}

// The VMM writes them once a minute; Kata waits for that.
func (m *machine) flushMetrics() error {
	api := filepath.Join(filepath.Dir(m.vsock.UdsPath), "run", "firecracker.socket")
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", api)
		}}}
	request, err := http.NewRequest(http.MethodPut, "http://localhost/actions",
		strings.NewReader(`{"action_type": "FlushMetrics"}`))
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err == nil && answer.StatusCode != http.StatusNoContent {
		err = errors.New(answer.Status)
	}
	return err
}

// One of Kata's own metrics.
func figure(family, item string) float64 {
	families, _ := prometheus.DefaultGatherer.Gather()
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			if f.GetName() == family && metric.GetLabel()[0].GetValue() == item {
				return metric.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func (m *machine) stop(ctx context.Context) error {
	if err := m.Check(); err != nil {
		return err
	}
	if err := m.timed("StopVM", func() error { return m.StopVM(ctx, false) }); err != nil {
		return err
	}
	// A jailed one is nobody's child: it is there until init has looked at it.
	return waitUntil("the end of the process", func() bool { return m.Check() != nil })
}

func (m *machine) cleanUp(ctx context.Context) error {
	if err := m.Cleanup(ctx); err != nil {
		return err
	}
	cell := filepath.Dir(filepath.Dir(m.vsock.UdsPath))
	if _, err := os.Stat(cell); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %v", cell, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err == nil && strings.Contains(string(mounts), cell) {
		err = errors.New("left mounted: " + string(mounts))
	}
	return err
}

// All steps, up to the first that fails; the last two are done then, too.
func (m *machine) run(ctx context.Context, say func(any)) {
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"creates a microVM", m.create},
		{"starts it, with nine drives, an interface and a vsock", func(ctx context.Context) error {
			return m.timed("StartVM", func() error { return m.StartVM(ctx, 10) })
		}},
		{"finds the threads of its vCPUs", m.threads},
		{"speaks with the guest by vsock", m.echo},
		{"plugs a drive, which the guest reads and writes", m.plug},
		{"reads its log and its metrics from FIFOs", m.fifos},
		{"unplugs the drive, and the guest finds it gone", m.unplug},
		{"stops it", m.stop},
		{"finds nothing left", m.cleanUp},
	}
	for i := 0; i < len(steps); i++ {
		if err := steps[i].do(ctx); err != nil {
			say([]string{steps[i].name, "failed", err.Error()})
			if m.Hypervisor == nil {
				return
			}
			i = max(i, len(steps)-3)
			continue
		}
		say([]string{steps[i].name, "passed", ""})
	}
}

func main() {
	if len(os.Args) != 7 || slices.Contains(os.Args[1:], "--help") {
		fmt.Fprintln(os.Stderr, "usage: kata BINARY JAILER KERNEL IMAGE DISK TAP")
		os.Exit(2)
	}
	m := &machine{
		took: map[string]float64{},
		tap:  os.Args[6],
		disk: config.BlockDrive{File: os.Args[5], ID: "drive", Index: 0},
		hypervisor: vc.HypervisorConfig{
			HypervisorPath: os.Args[1], JailerPath: os.Args[2], KernelPath: os.Args[3],
			ImagePath: os.Args[4], NumVCPUsF: vcpus, MemorySize: 128, Debug: true,
			DisableSeLinux: true,
			KernelParams:   []vc.Param{{Key: "slot", Value: slotOfVsock}, {Key: "disk", Value: slotOfDrive}},
		},
	}
	out := json.NewEncoder(os.Stdout)
	m.run(context.Background(), func(line any) {
		if err := out.Encode(line); err != nil {
			panic(err)
		}
	})
	if err := out.Encode(m.took); err != nil {
		panic(err)
	}
}
