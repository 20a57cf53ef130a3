"""Power cuts without cutting the power: what reaches a disk is recorded, and its moments are looked at.

recorder   two disks as files of a FUSE file system that writes down each write, each barrier, and marks of ours
replay     the disks as a cut at some moment leaves them
promises   which content each file may have at that moment
scene      ext4 on the disks, an account, its sessions, and what is found after a cut
guest      the program that works in the view
"""
