// Starts and deletes a microVM as flintlock does: by its provider for Firecracker, which writes the
// configuration and the metadata, and runs the binary. Built inside a copy of flintlock's checkout.
//
// usage: flintlock-start BINARY DIRECTORY KERNEL DISK USER-DATA COMMAND...
//
// COMMAND runs while the microVM does, in the directory that has its stdout. Interfaces: eth0, with
// the metadata service, on the tap mmds0; eth1 on host0.
package main

import (
	"context"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/liquidmetal-dev/flintlock/core/models"
	"github.com/liquidmetal-dev/flintlock/infrastructure/microvm/firecracker"
	"github.com/spf13/afero"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func microvm(kernel, disk, userData string) *models.MicroVM {
	id, err := models.NewVMID("machine", "tests", "01")
	check(err)
	vm := &models.MicroVM{ID: *id}
	address := &models.StaticAddress{Address: "172.30.0.2/24"}
	vm.Spec = models.MicroVMSpec{
		VCPU: 1, MemoryInMb: 1024,
		Kernel: models.Kernel{Filename: filepath.Base(kernel), AddNetworkConfig: true,
			CmdLine: map[string]string{"slot": "1"}},
		RootVolume: models.Volume{ID: "root"},
		NetworkInterfaces: []models.NetworkInterface{
			{GuestDeviceName: "eth0", AllowMetadataRequests: true, Type: models.IfaceTypeTap,
				GuestMAC: "06:00:ac:1e:00:02", StaticAddress: address},
			{GuestDeviceName: "eth1", Type: models.IfaceTypeTap},
		},
		Metadata: map[string]string{"user-data": userData, "meta-data": "local-hostname: machine\n"},
	}
	vm.Status = models.MicroVMStatus{
		KernelMount: &models.Mount{Source: filepath.Dir(kernel)},
		Volumes:     models.VolumeStatuses{"root": {Mount: models.Mount{Source: disk}}},
		NetworkInterfaces: models.NetworkInterfaceStatuses{
			"eth0": {HostDeviceName: "mmds0"}, "eth1": {HostDeviceName: "host0"}},
	}
	return vm
}

func main() {
	ctx, directory := context.Background(), os.Args[2]
	vm := microvm(os.Args[3], os.Args[4], os.Args[5])
	fs := afero.NewOsFs()
	provider := firecracker.New(&firecracker.Config{FirecrackerBin: os.Args[1],
		StateRoot: directory, DeleteVMTimeout: time.Minute}, nil, fs)
	check(provider.Create(ctx, vm))
	command := exec.Command(os.Args[6], os.Args[7:]...)
	command.Dir = firecracker.NewState(vm.ID, directory, fs).Root()
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	failed := command.Run()
	check(provider.Delete(ctx, vm.ID.String()))
	check(failed)
}
