//! What comparing must see, and what it must not.

use super::*;

#[test]
fn devices_become_tokens_and_remarks_go() {
    let output = "# disk A=/dev/loop7\n$ dmsetup create l --table '0 8 linear /dev/loop7 0'\n\
                  ! device-mapper: reload ioctl on l (254:3) failed: Invalid argument\n= 1\n\
                  Major, minor:      254, 3\n1 dependencies\t: (7, 7) (7, 9)\nlow 254   0 L--w    1    1      0\n\
                  0 8 linear 7:7 0\n# kernel: noise\n";
    let expected = "$ dmsetup create l --table '0 8 linear /dev/<A> 0'\n\
                    ! device-mapper: reload ioctl on l (<dm>) failed: Invalid argument\n= 1\n\
                    Major, minor: <dm>\n1 dependencies\t: (<A>) (<dm>)\nlow <dm> L--w 1 1 0\n\
                    0 8 linear <A> 0\n";
    assert_eq!(normalise(output).unwrap(), expected);
}

#[test]
fn the_numbers_of_both_arms_meet() {
    let kernel = "# disk A=/dev/loop0\n0 64 linear 254:1 0\n64 64 linear 7:0 0\nhigh\t(dm-1)\n";
    let ours = "# disk A=/dev/loop12\n0 64 linear 7:30 0\n64 64 linear 7:12 0\nhigh\t(loop31)\n";
    assert_eq!(normalise(kernel).unwrap(), normalise(ours).unwrap());
}

#[test]
fn a_changed_line_is_found_with_its_command() {
    let kernel = "$ a\nout\n= 0\nfact one\n$ b\n= 1\n";
    let ours = "$ a\nOUT\n= 0\nfact two\n$ b\n= 1\n";
    let found = differences("c", kernel, ours, &Permitted::default());
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("$ a\nout\n") && found[0].contains("$ a\nOUT\n"));
    assert!(found[1].contains("fact one") && found[1].contains("fact two"));
    assert!(differences("c", kernel, kernel, &Permitted::default()).is_empty());
}

#[test]
fn a_missing_or_added_step_is_found() {
    let kernel = "$ a\n= 0\nfact\n$ b\n= 0\n";
    let ours = "$ a\n= 0\n$ b\n= 0\nextra\n";
    let found = differences("c", kernel, ours, &Permitted::default());
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_permitted_difference_names_its_command_and_reason() {
    let permitted = Permitted::parse("# remark\nc | ^\\$ a$ | words differ\n").unwrap();
    assert!(differences("c", "$ a\n1\n= 0\n", "$ a\n2\n= 0\n", &permitted).is_empty());
    assert_eq!(
        differences("d", "$ a\n1\n= 0\n", "$ a\n2\n= 0\n", &permitted).len(),
        1
    );
    assert_eq!(
        differences("c", "$ ab\n1\n= 0\n", "$ ab\n2\n= 0\n", &permitted).len(),
        1
    );
    assert!(Permitted::parse("c | x\n").is_err());
}
